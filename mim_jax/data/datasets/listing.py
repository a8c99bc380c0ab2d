"""The image files below a folder, found by one walk, kept compactly and cached with a check for staleness.

The cache is one .npz file a folder in `cache_dir`, named by a hash of the folder's path. It is trusted while
no directory of the listing has changed its modification time; a directory that changed within two seconds of
the walk is never trusted, since a later change could carry the same time. A file rewritten in place leaves
the listing as it is, as it should.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from etils import epath

from mim_jax.data.errors import DataError
from mim_jax.data.npy import Archive
from mim_jax.reading import Unreadable
from mim_jax.storage import StorageError, atomic_write, is_bucket, make_directory

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
VERSION = 2
SETTLED_NS = 2_000_000_000
Int64s = npt.NDArray[np.int64]
_INT64 = np.dtype(np.int64)


class Names:
    """A sequence of paths in one block of bytes: a million take 40 MB, as Python strings 150 MB."""

    def __init__(self, block: npt.NDArray[np.uint8], ends: Int64s) -> None:
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, names: list[bytes]) -> "Names":
        ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.block[start : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Listing:
    """Relative paths of image files, sorted by their bytes, with sizes in bytes (-1: cannot be asked); the
    directories they came from."""

    files: Names
    sizes: Int64s
    directories: Names
    times: Int64s  # Modification times, ns.
    started: int  # When the walk began, ns.
    skipped: int = 0  # Links to directories that were not followed.
    cached: bool = False


def list_images(root: str, cache_dir: str | None = None) -> Listing:
    """The listing of a folder, from the cache where that is still true. Raises DataError for a folder that
    cannot be read."""
    if is_bucket(root):
        return walk_bucket(root)  # its directories have no times by which a kept listing could be trusted
    cache = _cache_path(root, cache_dir)
    listing = _load(cache)
    if listing is not None and _current(root, listing):
        return listing
    listing = walk(root)
    _save(cache, listing)
    return listing


def walk(root: str) -> Listing:
    """Walks `root` to any depth. Names that begin with a dot are left out.

    Links to files are followed, and links to directories right below `root` (class folders on another disk), but
    not to one that `root` lies in or that is the top of a disk: such a link would have the whole machine walked. No
    other link to a directory is followed; `skipped` counts them.

    A name with an image's extension that leads nowhere (broken link) or to no regular file is listed: reading
    it gives the error.
    """
    started = time.time_ns()
    files: list[tuple[bytes, int]] = []
    directories: list[tuple[bytes, int]] = []
    pending, skipped = [""], 0
    while pending:
        relative = pending.pop()
        path = os.path.join(root, relative)
        try:
            directories.append((os.fsencode(relative), os.stat(path).st_mtime_ns))
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = os.path.join(relative, entry.name)
                    if is_directory(entry):
                        if entry.is_symlink() and (relative or not _may_follow(entry.path, root)):
                            skipped += 1
                        else:
                            pending.append(name)
                    elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                        files.append((os.fsencode(name), _size(entry)))
        except OSError as error:
            raise DataError(
                f"The folder {path} cannot be listed ({error.strerror}): check that it exists and that you "
                "may read it."
            ) from error
    files.sort()
    directories.sort()
    return Listing(
        Names.of([name for name, _ in files]),
        np.array([size for _, size in files], np.int64),
        Names.of([name for name, _ in directories]),
        np.array([mtime for _, mtime in directories], np.int64),
        started,
        skipped,
    )


def walk_bucket(root: str) -> Listing:
    """As `walk`, for a folder in a bucket: a request a folder. Sizes are not asked for."""
    started, top = time.time_ns(), ""
    files: list[bytes] = []
    for number, (place, folders, names) in enumerate(epath.Path(root).walk()):
        top = os.fspath(place) if number == 0 else top
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(place, top)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                files.append(os.fsencode(os.path.normpath(os.path.join(relative, name))))
    none = np.zeros(0, np.int64)
    sizes = np.full(len(files), -1, np.int64)
    return Listing(Names.of(sorted(files)), sizes, Names.of([]), none, started)


def _may_follow(link: str, root: str) -> bool:
    """Whether a link right below the root leads to a directory beside it, and not to one that holds it or a whole disk."""
    target, base = os.path.realpath(link), os.path.realpath(root)
    return os.path.commonpath([target, base]) not in (target, base) and not os.path.ismount(target)


def is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is, or links to, a directory."""
    try:
        return entry.is_dir()
    except (
        OSError
    ):  # A link back to itself: no directory; if it is named like an image, reading it is an error.
        return False


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # A broken link: there is a name and nothing to measure.
        return -1


def _current(root: str, listing: Listing) -> bool:
    for relative, mtime in zip(listing.directories, listing.times.tolist(), strict=True):
        if mtime > listing.started - SETTLED_NS:
            return False
        try:
            if os.stat(os.path.join(root, relative)).st_mtime_ns != mtime:
                return False
        except OSError:
            return False
    return True


def _cache_path(root: str, cache_dir: str | None) -> Path:
    base = (
        Path(cache_dir)
        if cache_dir
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mim_jax"
    )
    key = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=10).hexdigest()
    return base / f"listing-{key}.npz"


def _load(cache: Path) -> Listing | None:
    """What the cache holds, or None where it holds nothing that this version can read."""
    try:
        with Archive(cache) as archive:
            kept = {name: archive.load(name) for name in archive.names}
        if int(kept["version"]) != VERSION:
            return None
        files = _names(kept["files"], kept["file_ends"])
        directories = _names(kept["directories"], kept["directory_ends"])
        sizes, times = kept["sizes"], kept["times"]
        if (len(sizes), len(times)) != (len(files), len(directories)) or {sizes.dtype, times.dtype} != {
            _INT64
        }:
            return None
        return Listing(
            files, sizes, directories, times, int(kept["started"]), int(kept["skipped"]), cached=True
        )
    except (Unreadable, KeyError, TypeError, ValueError):
        return None


def _names(block: npt.NDArray[Any], ends: npt.NDArray[Any]) -> Names:
    """Raises ValueError where they are not what `Names` writes."""
    if block.dtype != np.uint8 or block.ndim != 1 or ends.dtype != _INT64 or ends.ndim != 1:
        raise ValueError("other types")
    if np.any(np.diff(ends, prepend=0) < 0) or (ends[-1] if len(ends) else 0) != len(block):
        raise ValueError("ends that are none")
    return Names(block, ends)


def _save(cache: Path, listing: Listing) -> None:
    try:
        make_directory(cache.parent)
        with atomic_write(cache) as stream:  # hosts that share a home may list at the same time
            np.savez(
                stream,
                version=VERSION,
                files=listing.files.block,
                file_ends=listing.files.ends,
                sizes=listing.sizes,
                directories=listing.directories.block,
                directory_ends=listing.directories.ends,
                times=listing.times,
                started=listing.started,
                skipped=listing.skipped,
            )
    except StorageError as error:
        # Nothing is lost but the time of the next walk, and read-only homes are common on clusters.
        warnings.warn(
            f"The listing of images cannot be kept in {cache.parent} ({error}), so the folder is "
            "walked "
            "at every start: set cache_dir to a folder you may write.",
            stacklevel=2,
        )
