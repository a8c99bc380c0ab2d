"""Checksums of the files below a directory: sha256 of the contents, with the size in bytes.

Orbax restores flipped bytes without an error, so a checkpoint is only as good as our own sums. sha256 because
processors have instructions for it (about 2 GB/s a core; blake2b 1.35), and `sha256sum` can check it by hand.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

from etils.epath import Path

from mim_jax.storage import is_bucket

# hashlib releases the interpreter lock, so threads do run side by side.
_THREADS = 4
_PART = 2**20


class FileSum(TypedDict):
    """Size in bytes and hexadecimal sha256 of one file."""

    size: int
    sha256: str


def sum_file(path: Path) -> FileSum:
    """Sums one file. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        digest, size = hashlib.sha256(), 0
        while part := file.read(_PART):
            digest.update(part)
            size += len(part)
        return {"size": size, "sha256": digest.hexdigest()}


def sum_files(root: Path) -> dict[str, FileSum]:
    """Sums every file below `root`, keyed by its path relative to `root` with forward slashes."""
    names = sorted(_names_below(root))
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: sum_file(root / name), names), strict=True))


def first_damage(root: Path, expected: Mapping[str, FileSum]) -> str | None:
    """Says what is wrong with the first damaged file, or None where every expected file is as it was summed.

    Files that are not expected are ignored: a file browser's droppings do not make a checkpoint bad.
    """
    for name, sums in expected.items():  # sizes first: a stat is cheap
        path = root / name
        if (size := _size(path)) is None:
            return f"{name} is missing"
        if size != sums["size"]:
            return f"{name} has {size} bytes instead of {sums['size']}"
    with ThreadPoolExecutor(_THREADS) as pool:
        reasons = pool.map(lambda name: _content_damage(root / name, expected[name]), expected)
        for name, reason in zip(expected, reasons, strict=True):
            if reason is not None:
                return f"{name} {reason}"
    return None


def _names_below(root: Path, prefix: str = "") -> Iterator[str]:
    for path in root.iterdir():
        if path.is_dir():
            yield from _names_below(path, f"{prefix}{path.name}/")
        elif path.name:  # some stores list a directory as an object without a name
            yield prefix + path.name


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    if is_bucket(path):
        return int(path.stat().length) if path.is_file() else None
    return os.path.getsize(path) if os.path.isfile(path) else None


def _content_damage(path: Path, expected: FileSum) -> str | None:
    try:
        found = sum_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == expected else "does not have the contents that were saved (checksum)"
