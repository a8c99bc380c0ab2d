"""Encoded bytes to upright uint8 RGB, and the size of a picture from its header alone.

JPEG in RGB, YCbCr or grey goes through simplejpeg (libjpeg-turbo), where installed; everything else, and
whatever simplejpeg refuses as odd, through PIL; the pixels are PIL's, bit for bit. OpenCV is not in the
chain: its JPEG pixels and speed are simplejpeg's and its PNG is slower than PIL's, but it returns a JPEG with
a hole in it as a picture. (So does PIL: where simplejpeg is missing, such a file passes.)

Decisions. The content says the format, not the name. EXIF and XMP orientation is undone. Transparency is laid
on white. CMYK as PIL converts it; colour profiles are ignored. Of an animation the first frame. 16-bit values
are scaled by 255/65535 (for 16-bit colour PIL keeps the high byte, which differs by at most 1); 32-bit
integers count as 16-bit; floats are [0, 1] or else [0, 255]; values outside these ranges are a bad image.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mim_jax.data.errors import BadImageError

Pixels = npt.NDArray[np.uint8]

try:
    import simplejpeg
except ImportError:  # A platform without its wheel: PIL reads the same pixels, more slowly.
    simplejpeg = None

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
)  # MPO opens as JPEG. Nothing that starts another program, as EPS does.
MAX_PIXELS = 178_000_000
MAX_SIDE = 65_500
JPEG_MAGIC = b"\xff\xd8\xff"
SIMPLE_SPACES = ("YCbCr", "Gray", "RGB")
ORIENTATION = 0x0112
# EXIF orientation to what undoes it: swap the axes, then reverse the rows, then the columns.
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# Where none of these occurs there is no orientation, and PIL need not look (for PNG its look costs a whole
# decode).
ORIENTATION_MARKS = (b"Exif\0", b"eXIf", b"EXIF", b"tiff:Orientation", b"Raw profile type")

# PIL warns from half of our limit on; the limit is ours to hold.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# What PIL warns of in a damaged file, the verdict on that file says.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
Image.init()  # All plugins now: the first `open` in several threads at once would race to load them.


@dataclass(frozen=True)
class Header:
    """height, width: pixels, upright; orientation: EXIF's 1 to 8, of what the decoder returns; simple:
    simplejpeg reads it."""

    height: int
    width: int
    orientation: int
    simple: bool


def read_header(data: bytes, where: str) -> Header:
    """The header of an encoded picture; `where` names it in errors. Raises BadImageError."""
    if not data:
        raise BadImageError(where, "the file is empty (0 bytes)")
    header = _jpeg_header(data, where) or _pil_header(data, where)
    if header.height * header.width > MAX_PIXELS or max(header.height, header.width) > MAX_SIDE:
        raise BadImageError(
            where,
            f"it is oversized, {header.width} x {header.height} pixels, above {MAX_PIXELS // 10**6} "
            "megapixels "
            f"or {MAX_SIDE} a side",
        )
    return header


def decode(data: bytes, where: str, header: Header | None = None) -> Pixels:
    """The upright picture, uint8 [H, W, 3]; `header` is what `read_header` said, if it was asked before.
    Raises BadImageError."""
    header = header or read_header(data, where)
    pixels = _decode_simple(data, where) if header.simple else None
    if pixels is None:
        pixels = _decode_pil(data, where)
    pixels = turn_upright(pixels, header.orientation)
    if pixels.shape[:2] != (header.height, header.width):
        raise BadImageError(
            where,
            f"its header says {header.width} x {header.height} pixels and its data {pixels.shape[1]} x "
            f"{pixels.shape[0]}",
        )
    return pixels


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes an EXIF orientation (1 to 8; anything else means upright) on [H, W, 3]; contiguous."""
    transpose, flip_rows, flip_columns = TURNS.get(orientation, (False, False, False))
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def _jpeg_header(data: bytes, where: str) -> Header | None:
    if simplejpeg is None or not data.startswith(JPEG_MAGIC):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None  # PIL is asked next, and gives the verdict.
    orientation = 1
    if any(mark in data for mark in ORIENTATION_MARKS):
        orientation = _pil_header(data, where).orientation
    if orientation >= 5:
        height, width = width, height
    return Header(height, width, orientation, space in SIMPLE_SPACES)


def _pil_header(data: bytes, where: str) -> Header:
    with _Parsing(where), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        orientation = 1
        # PIL turns TIFF upright by itself, size included.
        if image.format != "TIFF" and any(mark in data for mark in ORIENTATION_MARKS):
            orientation = image.getexif().get(ORIENTATION, 1)
        if orientation not in range(1, 9):
            orientation = 1
        if orientation >= 5:
            height, width = width, height
        return Header(height, width, orientation, False)


def _decode_simple(data: bytes, where: str) -> Pixels | None:
    assert simplejpeg is not None
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data)
        return pixels
    except ValueError as error:
        # Harmless oddities (bytes between markers) are PIL's to read. Missing data is not: PIL would fill
        # some of it with grey.
        if "remature end" in str(error):
            raise BadImageError(where, f"its JPEG data is damaged or cut short ({error})") from error
        return None


def _decode_pil(data: bytes, where: str) -> Pixels:
    with _Parsing(where), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _to_rgb(image, where)


def _to_rgb(image: Image.Image, where: str) -> Pixels:
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        grey = _grey_of_deep(np.asarray(image), where)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _grey_of_deep(values: np.ndarray, where: str) -> np.ndarray:
    """Deep grey [H, W] of integers (16-bit range) or floats ([0, 1] or [0, 255]) to uint8 [H, W]."""
    low, high = values.min(), values.max()
    top = 65_535.0 if values.dtype.kind in "iu" else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= top):  # Also false for NaN.
        raise BadImageError(where, f"its {values.dtype} values span {low} to {high}, outside 0 to {top:g}")
    return np.round(values.astype(np.float64) * (255 / top)).astype(np.uint8)


class _Parsing:
    """Turns whatever PIL raises on foreign bytes into BadImageError: its parsers let through a dozen kinds of
    error."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, (BadImageError, MemoryError)):
            return
        if isinstance(error, Image.DecompressionBombError):
            raise BadImageError(
                self.where, f"it is oversized, above {MAX_PIXELS // 10**6} megapixels"
            ) from error
        if isinstance(error, UnidentifiedImageError):
            raise BadImageError(
                self.where, "its content is not a JPEG, PNG, WebP, BMP, GIF or TIFF image"
            ) from error
        raise BadImageError(self.where, f"it does not decode ({type(error).__name__}: {error})") from error
