"""Our decoder against PIL's for every mode and orientation, and values by hand where PIL would clip."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from mim_jax.data import BadImageError
from mim_jax.data import decode as module
from mim_jax.data.datasets.photos import photograph_paths
from mim_jax.data.decode import decode, read_header


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photograph(height=90, width=121):
    return Image.open(photograph_paths()[1]).convert("RGB").resize((width, height))


def by_pil(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


JPEGS = {
    "444": {"subsampling": 0, "quality": 95},
    "422": {"subsampling": 1, "quality": 80},
    "420": {"subsampling": 2, "quality": 75},
    "progressive": {"progressive": True, "quality": 60},
    "optimised": {"optimize": True},
    "stored as RGB": {"keep_rgb": True},
    "restarts": {"restart_marker_blocks": 3},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(90, 121), (1, 1), (17, 8)])
def test_jpeg_equals_pil_exactly(options, mode, size):
    data = encode(photograph(*size).convert(mode), "JPEG", **options)
    assert read_header(data, "x").simple
    np.testing.assert_array_equal(decode(data, "x"), by_pil(data))


def test_why_opencv_is_not_in_the_chain():
    """It reads what simplejpeg reads, to the same pixels, and a file with a hole in it besides."""
    cv2 = pytest.importorskip("cv2")
    whole = encode(photograph(200, 300), "JPEG")
    hollow = whole[: len(whole) // 2] + whole[-2:]
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    read = [cv2.imdecode(np.frombuffer(data, np.uint8), flags) for data in (whole, hollow)]
    np.testing.assert_array_equal(read[0], decode(whole, "x"))
    assert read[1].shape == (200, 300, 3)
    with pytest.raises(BadImageError, match="damaged or cut short"):
        decode(hollow, "x")


def test_photographs_equal_pil_exactly():
    for path in photograph_paths():
        np.testing.assert_array_equal(decode(path.read_bytes(), str(path)), by_pil(path.read_bytes()))


def test_without_simplejpeg_the_pixels_are_the_same(monkeypatch):
    data = encode(photograph(), "JPEG", exif=orientation_exif(6))
    expected = decode(data, "x")
    monkeypatch.setattr(module, "simplejpeg", None)
    assert not read_header(data, "x").simple
    np.testing.assert_array_equal(decode(data, "x"), expected)


def orientation_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_undone(orientation, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(photograph(30, 50), kind, exif=orientation_exif(orientation), **options)
    header, pixels = read_header(data, "x"), decode(data, "x")
    expected = by_pil(data)
    assert pixels.shape == ((50, 30, 3) if 5 <= orientation <= 8 else (30, 50, 3))
    assert (header.height, header.width) == pixels.shape[:2] and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)


def test_orientation_in_xmp():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(photograph(30, 50), "JPEG", xmp=xmp)
    assert decode(data, "x").shape == (50, 30, 3)
    np.testing.assert_array_equal(decode(data, "x"), by_pil(data))


WRITABLE = {
    "PNG": ("L", "1", "P", "RGB"),
    "TIFF": ("L", "1", "P", "RGB", "CMYK", "YCbCr"),
    "BMP": ("L", "1", "P", "RGB"),
    "GIF": ("L", "1", "P", "RGB"),
    "WEBP": ("L", "1", "P", "RGB"),
    "JPEG": ("L", "1", "RGB", "CMYK", "YCbCr"),
}


@pytest.mark.parametrize("kind, mode", [(kind, mode) for kind, modes in WRITABLE.items() for mode in modes])
def test_opaque_modes_equal_pil(kind, mode):
    data = encode(photograph().convert(mode), kind)
    np.testing.assert_array_equal(decode(data, "x"), by_pil(data))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode):
    alpha = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    base = Image.merge("RGBA", [*Image.new("RGB", (3, 1), (100, 100, 100)).split(), alpha])
    if mode == "P":
        palette = Image.new("P", (3, 1))
        palette.putpalette([100, 100, 100] * 3)
        palette.putdata([0, 1, 2])
        data = encode(palette, "PNG", transparency=bytes([0, 128, 255]))
    else:
        data = encode(base.convert(mode), "PNG")
    pixels = decode(data, "x")
    expected = [255, 255 - round(155 * 128 / 255), 100]
    np.testing.assert_allclose(pixels[0, :, 0], expected, atol=1)


def test_colour_key_transparency_is_white():
    data = encode(
        Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)), "PNG", transparency=(1, 2, 3)
    )
    assert decode(data, "x").tolist() == [[[255, 255, 255], [9, 9, 9]]]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    deep = np.array([[0, 257, 128 * 257, 65535, 300]], np.uint16)
    for kind in ("PNG", "TIFF"):
        pixels = decode(encode(Image.fromarray(deep), kind), "x")
        assert pixels[0, :, 0].tolist() == [0, 1, 128, 255, 1] and (pixels[..., 0] == pixels[..., 2]).all()


def test_sixteen_bit_colour_png_is_scaled():
    assert decode(
        png(2, 1, 16, 2, struct.pack(">6H", 0, 257 * 7, 65535, 257 * 200, 128 * 257, 1)), "x"
    ).tolist() == [[[0, 7, 255], [200, 128, 0]]]


def png(width, height, depth, colour, rows):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    step = len(rows) // height
    raw = b"".join(b"\0" + rows[k * step : (k + 1) * step] for k in range(height))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "values, expected",
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.4, 254.6], [0, 100, 255]), ([0.0, 0.0, 0.0], [0, 0, 0])],
)
def test_float_tiff(values, expected):
    data = encode(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert decode(data, "x")[0, :, 1].tolist() == expected


@pytest.mark.parametrize("values", [[-0.5, 0.5], [0.0, 300.0], [float("nan"), 0.5]])
def test_float_tiff_without_a_known_range_is_bad(values):
    with pytest.raises(BadImageError, match="outside 0 to"):
        decode(encode(Image.fromarray(np.array([values], np.float32)), "TIFF"), "x")


def test_integer_tiff_counts_as_sixteen_bit():
    assert decode(encode(Image.fromarray(np.array([[0, 65535]], np.int32)), "TIFF"), "x")[
        0, :, 0
    ].tolist() == [0, 255]
    with pytest.raises(BadImageError, match="outside 0 to 65535"):
        decode(encode(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF"), "x")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options), "x")
    assert pixels[4, 4].tolist() == [255, 0, 0]


def test_truncated_data_never_becomes_an_image():
    for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF"):
        data = encode(photograph(200, 300), kind)
        for share in (0.1, 0.5, 0.9):
            with pytest.raises(BadImageError):
                decode(data[: int(len(data) * share)], "x")
    jpeg = encode(photograph(200, 300), "JPEG")
    with pytest.raises(
        BadImageError, match="damaged or cut short"
    ):  # The end marker is there, the middle is not.
        decode(jpeg[: len(jpeg) // 2] + jpeg[-2:], "x")


def test_harmless_oddities_are_read():
    jpeg = encode(photograph(), "JPEG")
    np.testing.assert_array_equal(decode(jpeg + b"trailing bytes", "x"), by_pil(jpeg))
    padded = jpeg[:2] + b"\xff\xff" + jpeg[3:]  # Fill bytes before a marker are legal.
    np.testing.assert_array_equal(decode(padded, "x"), by_pil(jpeg))


def test_oversized_images_are_refused_from_the_header():
    wide = png(70_000, 1, 8, 0, bytes(70_000))
    bomb = png(14_000, 13_000, 8, 0, b"\0" * 13_000)  # 182 megapixels claimed.
    jpeg = bytearray(encode(photograph(), "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5  # Height and width in the frame header.
    jpeg[size : size + 4] = struct.pack(">HH", 14_000, 13_000)
    with pytest.raises(BadImageError, match="oversized, 13000 x 14000 pixels, above 178 megapixels"):
        read_header(bytes(jpeg), "x")
    for data in (wide, bomb, png(30_000, 30_000, 8, 0, b"\0" * 30_000)):
        with pytest.raises(BadImageError, match="oversized"):
            read_header(data, "x")
    assert decode(png(20_000, 1, 8, 0, bytes(20_000)), "x").shape == (1, 20_000, 3)


def test_foreign_bytes_are_named():
    for data, says in (
        (b"", "empty"),
        (b"hello", "not a JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF", "not a JPEG"),
        (b"\xff\xd8\xff", ""),
    ):
        with pytest.raises(BadImageError, match=f"(?s)a/b.jpg.*{says}"):
            decode(data, "a/b.jpg")
