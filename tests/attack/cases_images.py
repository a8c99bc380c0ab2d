"""Folders of images, as the source of a run."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.attack import odd
from tests.attack.case import Act, Case, train

AREA = "images"


def picture(kind: str = "PNG", size: tuple[int, int] = (12, 12), seed: int = 0) -> bytes:
    """An encoded picture of noise."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def _folder(tmp: Path) -> Path:
    """Ten good pictures of two classes, in a split of its own for each."""
    for split in ("train", "test"):
        for label in ("a", "b"):
            where = tmp / "pictures" / split / label
            where.mkdir(parents=True)
            for number in range(5):
                (where / f"{number}.png").write_bytes(picture(seed=number))
    return tmp / "pictures"


CROPS = ("augment.crop=random_resized", "augment.eval_crop=centre_square")


def dataset(folder: Path | str, tmp: Path, *more: str) -> Act:
    """Trains on a folder: all of it is in the first batch."""
    return train(
        tmp / "run", f"data.source=folder:{folder}", "model.image_size=8", "model.patch=2", *CROPS, *more
    )


def _among(put: Callable[[Path], object], name: str = "5.jpg") -> Callable[[Path], Act]:
    """One bad file among good ones."""

    def build(tmp: Path) -> Act:
        folder = _folder(tmp)
        put(folder / "train" / "a" / name)
        return dataset(folder, tmp)

    return build


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(
    width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0, extra: bytes = b""
) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + extra + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _bomb() -> bytes:
    """Twelve gigapixels of zeros in a few megabytes."""
    side = 110_000
    packer = zlib.compressobj(9)
    row = bytes(side // 8 + 1)
    body = b"".join(packer.compress(row * 1000) for _ in range(side // 1000)) + packer.flush()
    return _png(side, side, body, depth=1)


def _text_bomb() -> bytes:
    """A compressed comment of a gigabyte beside a picture of one pixel."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(1 << 24)) for _ in range(64)) + packer.flush()
    return _png(1, 1, zlib.compress(b"\0\0"), extra=_chunk(b"zTXt", b"comment\0\0" + text))


JPEG = picture("JPEG", (64, 48))
BYTES: dict[str, tuple[str, bytes]] = {
    "empty": ("5.jpg", b""),
    "truncated JPEG": ("5.jpg", JPEG[: len(JPEG) // 2]),
    "JPEG cut and closed": ("5.jpg", JPEG[: len(JPEG) // 2] + JPEG[-2:]),
    "JPEG's first bytes": ("5.jpg", JPEG[:3]),
    "JPEG's header": ("5.jpg", JPEG[:20]),
    "JPEG of size 0": ("5.jpg", JPEG.replace(b"\x00\x11\x08\x00\x40\x00\x30", b"\x00\x11\x08\x00\x00\x00\x00")),
    "JPEG that claims 65535 a side": ("5.jpg", JPEG.replace(b"\x00\x11\x08\x00\x40\x00\x30", b"\x00\x11\x08\xff\xff\xff\xff")),
    "truncated PNG": ("5.png", picture()[:-40]),
    "PNG of size 0": ("5.png", _png(0, 0, zlib.compress(b""))),
    "PNG that claims 60000 a side": ("5.png", _png(60_000, 60_000, zlib.compress(bytes(60_001)))),
    "PNG that claims 2**31 - 1 a side": ("5.png", _png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0"))),
    "PNG with a wrong checksum": ("5.png", picture()[:40] + b"\xff" + picture()[41:]),
    "PNG of depth 99": ("5.png", _png(4, 4, zlib.compress(bytes(20)), depth=99)),
    "PNG with garbage for rows": ("5.png", _png(4, 4, b"garbage")),
    "truncated GIF": ("5.gif", picture("GIF")[:30]),
    "truncated WebP": ("5.webp", picture("WEBP")[:40]),
    "truncated BMP": ("5.bmp", picture("BMP")[:60]),
    "BMP that claims a negative size": ("5.bmp", picture("BMP")[:18] + struct.pack("<ii", -9, -9) + picture("BMP")[26:]),
    "truncated TIFF": ("5.tif", picture("TIFF")[:50]),
    "TIFF whose directory is itself": ("5.tif", b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0"),
    "text": ("5.jpg", b"no image\n" * 9),
    "HTML": ("5.png", b"<html></html>"),
    "SVG": ("5.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "PostScript": ("5.tif", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"),
    "a zip archive": ("5.jpg", b"PK\x03\x04" + bytes(40)),
    "a pickle": ("5.jpg", b"\x80\x02cos\nmkdir\nX\x06\0\0\0canary\x85R."),
}  # fmt: skip

CASES = [
    Case(AREA, "good pictures", lambda tmp: dataset(_folder(tmp), tmp), accepted=True),
    Case(AREA, "a PNG named .jpg", _among(lambda path: path.write_bytes(picture())), accepted=True),
    Case(AREA, "a directory named .jpg", _among(Path.mkdir), accepted=True),
    Case(AREA, "a text beside the pictures", _among(lambda path: path.write_text("x"), "notes.txt"), accepted=True),
    *(Case(AREA, name, _among(lambda path, content=content: path.write_bytes(content), file), "5") for name, (file, content) in BYTES.items()),
    Case(AREA, "a bomb of 12 gigapixels", _among(lambda path: path.write_bytes(_bomb()), "5.png"), "oversized"),
    Case(AREA, "a bomb of a comment", _among(lambda path: path.write_bytes(_text_bomb()), "5.png"), "5.png"),
    *(Case(AREA, f"among the pictures {name}", _among(put), "5.jpg", seconds=8.0) for name, put in {"a pipe": odd.pipe, "a socket": odd.endpoint, "a link to /dev/zero": odd.device, "a broken link": odd.broken_link, "a link to itself": lambda path: path.symlink_to(path.name)}.items()),
]  # fmt: skip


def _made(make: Callable[[Path], object]) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        make(tmp / "pictures")
        return dataset(tmp / "pictures", tmp)

    return build


def _of(*names: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        folder.mkdir()
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(picture())

    return make


CASES += [
    Case(AREA, "no folder", _made(lambda folder: None), "pictures"),
    Case(AREA, "an empty folder", _made(Path.mkdir), "pictures"),
    Case(AREA, "one picture", _made(_of("1.png")), "pictures"),
    Case(AREA, "a file in place of the folder", _made(lambda folder: folder.write_text("x")), "pictures"),
    Case(AREA, "a pipe in place of the folder", _made(os.mkfifo), "pictures", seconds=8.0),
    Case(AREA, "no path", lambda tmp: dataset("", tmp)),
    Case(AREA, "a path with a zero byte", lambda tmp: dataset("a\0b", tmp)),
    Case(AREA, "a path of 5000 characters", lambda tmp: dataset("a" * 5000, tmp)),
    Case(AREA, "a path with a line break", lambda tmp: dataset("no\nwhere", tmp)),
    Case(AREA, "train of nothing but bad files", _made(lambda folder: [_folder(folder.parent), *(path.write_bytes(b"x") for path in folder.glob("train/*/*"))]), "cannot be used"),
    Case(AREA, "on_bad_image=maybe", lambda tmp: dataset(_folder(tmp), tmp, "data.on_bad_image=maybe"), "on_bad_image"),
]  # fmt: skip


def _skipping(tmp: Path) -> Act:
    folder = _folder(tmp)
    for name, content in BYTES.values():
        (folder / "train" / "a" / f"bad {len(content)} {name}").write_bytes(content)
    return dataset(folder, tmp, "data.on_bad_image=skip")


CASES += [Case(AREA, "all bad files skipped", _skipping, accepted=True)]
