"""Checksums of the files below a directory: sha256 of the contents, with the size in bytes.

Orbax restores flipped bytes without an error, so a checkpoint is only as good as our own sums. sha256 because
processors have instructions for it (about 2 GB/s a core; blake2b 1.35), and `sha256sum` can check it by hand.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

# hashlib releases the interpreter lock, so threads do run side by side.
_THREADS = 4


class FileSum(TypedDict):
    """Size in bytes and hexadecimal sha256 of one file."""

    size: int
    sha256: str


def sum_file(path: Path) -> FileSum:
    """Sums one file. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def sum_files(root: Path) -> dict[str, FileSum]:
    """Sums every file below `root`, keyed by its path relative to `root` with forward slashes."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: sum_file(root / name), names), strict=True))


def first_damage(root: Path, expected: Mapping[str, FileSum]) -> str | None:
    """Says what is wrong with the first damaged file, or None where every expected file is as it was summed.

    Files that are not expected are ignored: a file browser's droppings do not make a checkpoint bad.
    """
    for name, sums in expected.items():  # sizes first: a stat is cheap
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != sums["size"]:
            return f"{name} has {size} bytes instead of {sums['size']}"
    with ThreadPoolExecutor(_THREADS) as pool:
        reasons = pool.map(lambda name: _content_damage(root / name, expected[name]), expected)
        for name, reason in zip(expected, reasons, strict=True):
            if reason is not None:
                return f"{name} {reason}"
    return None


def _content_damage(path: Path, expected: FileSum) -> str | None:
    try:
        found = sum_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == expected else "does not have the contents that were saved (checksum)"
