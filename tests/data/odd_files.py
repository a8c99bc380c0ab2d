"""A folder of odd and broken files, each with the outcome that the documentation promises."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)  # h, w


def base(seed: int = 0) -> Image.Image:
    """A smooth colour picture, different for each seed."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    channels = [128 + 100 * np.sin(x / (5 + c) + seed) * np.cos(y / (7 + c)) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose data hold one row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def good_files() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """name -> (bytes, upright size (h, w)): odd, and readable."""
    rgb = base()
    deep = Image.fromarray(np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [base(1), base(2)]
    turned = SIZE[::-1]
    return {
        "plain.jpg": (encode(rgb, "JPEG"), SIZE),
        "progressive.jpg": (encode(rgb, "JPEG", progressive=True), SIZE),
        "grey.jpg": (encode(rgb.convert("L"), "JPEG"), SIZE),
        "cmyk.jpg": (encode(rgb.convert("CMYK"), "JPEG"), SIZE),
        "turned.jpg": (encode(rgb, "JPEG", exif=exif.tobytes()), turned),
        "one_pixel.png": (encode(rgb.crop((0, 0, 1, 1)), "PNG"), (1, 1)),
        "wide.png": (encode(rgb.resize((20_000, 2)), "PNG"), (2, 20_000)),
        "deep.png": (encode(deep, "PNG"), SIZE),
        "deep.tif": (encode(deep, "TIFF"), SIZE),
        "float.tiff": (
            encode(Image.fromarray(np.linspace(0, 1, 768).reshape(SIZE).astype(np.float32)), "TIFF"),
            SIZE,
        ),
        "animated.gif": (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), SIZE),
        "animated.webp": (encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]), SIZE),
        "palette.png": (encode(rgb.convert("P"), "PNG"), SIZE),
        "palette_clear.png": (encode(rgb.convert("P"), "PNG", transparency=3), SIZE),
        "grey_alpha.png": (encode(rgb.convert("LA"), "PNG"), SIZE),
        "alpha.png": (encode(rgb.convert("RGBA"), "PNG"), SIZE),
        "one_bit.png": (encode(rgb.convert("1"), "PNG"), SIZE),
        "bitmap.bmp": (encode(rgb, "BMP"), SIZE),
        "really_a_png.jpg": (encode(rgb, "PNG"), SIZE),
        "really_a_jpeg.png": (encode(rgb, "JPEG"), SIZE),
        "UPPER.JPG": (encode(base(3), "JPEG"), SIZE),
        "größe 图 #1?.jpeg": (encode(base(4), "JPEG"), SIZE),
        "tail.jpg": (encode(base(5), "JPEG") + b"appended", SIZE),
    }


def bad_files() -> dict[str, tuple[bytes, str]]:
    """name -> (bytes, part of the reason): named as images, and unusable."""
    jpeg = encode(base().resize((300, 200)), "JPEG")
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "cut short"),
        "hollow.jpg": (jpeg[: len(jpeg) // 2] + jpeg[-2:], "cut short"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this is no image\n" * 20, "not a JPEG"),
        "page.png": (b"<html></html>", "not a JPEG"),
        "header_only.jpg": (jpeg[:20], "not decode|not a JPEG"),
        "truncated.png": (encode(base(), "PNG")[:-60], "not decode"),
        "truncated.webp": (encode(base(), "WEBP")[:-40], "not decode|not a JPEG"),
        "bomb.png": (png_claiming(60_000, 60_000), "oversized"),
        "too_wide.png": (png_claiming(70_000, 1), "oversized"),
        "postscript.tiff": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a JPEG"),
    }


LINKS = {"broken_link.jpg": "broken link", "self_link.jpg": "broken link", "pipe.jpg": "not a regular file"}
IGNORED = (".hidden.jpg", "._plain.jpg", "notes.txt", "Thumbs.db")


def write_folder(root: Path, *, good: bool = True, bad: bool = True) -> None:
    """Writes the files, and the links, directories and pipe that are not a matter of bytes."""
    root.mkdir(parents=True, exist_ok=True)
    for name in IGNORED:
        (root / name).write_bytes(b"ignored")
    for name, (content, _) in (good_files() if good else {}).items():
        (root / name).write_bytes(content)
    if good:
        (root / "directory.jpg").mkdir()
        (root / "directory.jpg" / "inside.jpg").write_bytes(encode(base(6), "JPEG"))
        (root / "link_to_plain.jpg").symlink_to("plain.jpg")
        (root / "loop").symlink_to(root, target_is_directory=True)
    if bad:
        for name, (content, _) in bad_files().items():
            (root / name).write_bytes(content)
        (root / "broken_link.jpg").symlink_to("nowhere.jpg")
        (root / "self_link.jpg").symlink_to("self_link.jpg")
        os.mkfifo(root / "pipe.jpg")
