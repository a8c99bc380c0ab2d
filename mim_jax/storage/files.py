"""Paths that users name, and atomic writes: on this machine's disks or in a bucket (gs://BUCKET/PATH), through etils.epath.

A file of ours is complete or not there: on a disk it is written under a temporary name, which must be new, synced and renamed; in a
bucket it is one upload. Neither follows a link at the file's own name: the link is replaced, what it leads to stays as it is.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import fsspec
from etils import epath

from mim_jax.errors import UserError

BUCKETS = ("gs",)
"""Schemes of buckets that orbax and tensorstore write to as well as we do."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):/")
TEMPORARY_MARK = ".partial-"
"""Part of a temporary name: `.config.json.partial-1a2b3c4d`."""
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL = 65_536
"""Bytes that are read of a lock or a marker."""
_PERMISSIONS = 0o666  # less what the umask takes away, as for every other file


class StorageError(UserError):
    """A path that cannot be used, read or written: one sentence for the user."""


def parse_path(path: str | os.PathLike[str], what: str = "the path") -> epath.Path:
    """The place that a user's text names: a path, ~/..., file:///..., or gs://BUCKET/...

    Args:
        what: how an error calls it, e.g. "--workdir".
    Raises:
        StorageError: it is empty, another scheme (nothing is ever written into a local folder `s3:`), or gs:// without gcsfs.
    """
    text = os.fspath(path)
    if not text.strip() or "\0" in text:
        raise StorageError(f"{what} is {text!r}: give a path")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return epath.Path(os.path.expanduser(text))
    if scheme[1].lower() == "file" and text[: len("file://")].lower() == "file://":
        return _parse_file_uri(text, what)
    if scheme[1] not in BUCKETS or not re.match(r"gs://[^/]", text):
        raise StorageError(
            f"{what} is {text!r}, which is neither gs://BUCKET/PATH, file:///PATH nor a path of this machine: other storage has to be"
            " mounted; a local folder with a colon in its name is written ./NAME"
        )
    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise StorageError(
            f"{what} is {text!r}, and buckets of Google Cloud Storage need the package gcsfs: pip install gcsfs"
        ) from error
    # tensorstore writes past gcsfs: a listing that it kept would lack what is there now.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def _parse_file_uri(text: str, what: str) -> epath.Path:
    path = text[len("file://") :]
    if not path.startswith("/"):
        raise StorageError(f"{what} is {text!r}: write file:/// and the whole path, as file:///home/me/runs")
    return epath.Path(path)


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path from `parse_path` lies in a bucket."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in BUCKETS))


def require_local(path: str | os.PathLike[str], what: str) -> pathlib.Path:
    """The path as one of this machine's disks.

    Args:
        what: who needs it there and why, e.g. "k-means maps its features into memory".
    Raises:
        StorageError: it lies in a bucket.
    """
    if is_bucket(path):
        raise StorageError(f"{os.fspath(path)} lies in a bucket, but {what}: name a path of this machine")
    return pathlib.Path(path)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A stream whose bytes become the file when the block ends well; else the file stays as it was.

    Raises:
        StorageError: it cannot be written.
    """
    if is_bucket(path):
        buffer = io.BytesIO()
        yield buffer
        with _storage_errors(path):
            epath.Path(path).write_bytes(buffer.getvalue())
        return
    with (
        _storage_errors(path),
        _temporary_file_beside(path) as (descriptor, _),
        open(descriptor, "wb", closefd=False) as stream,
    ):
        yield stream


@contextlib.contextmanager
def atomic_write_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """As `atomic_write`, for libraries that write to a path: the local file that exists and is to be written."""
    if is_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "file"
            yield file
            with _storage_errors(path), file.open("rb") as source, epath.Path(path).open("wb") as target:
                shutil.copyfileobj(source, target)
        return
    with _storage_errors(path), _temporary_file_beside(path) as (_, temporary):
        yield temporary


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file, whole or not at all. Raises StorageError."""
    with atomic_write(path) as stream:
        stream.write(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file in UTF-8, whole or not at all. Raises StorageError."""
    # Names of files need not be UTF-8: Python holds their odd bytes as lone surrogates, which no page can show.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON, whole or not at all. Raises StorageError."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_small_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """An object of JSON in a small regular file; empty where there is none, a link, or nothing that can be understood."""
    try:
        if is_bucket(path):
            bucket_path = epath.Path(path)
            content = bucket_path.read_bytes() if bucket_path.exists() else b""
        else:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(descriptor, "rb") as stream:
                content = stream.read(_SMALL) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        value = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def open_to_append(path: str | os.PathLike[str]) -> IO[str]:
    """A local text file to add lines to, each on its way to the disk when it is written. Raises StorageError, also for a link."""
    with _storage_errors(path):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, _PERMISSIONS)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StorageError(f"{os.fspath(path)} is not a regular file: remove it")
        return open(descriptor, "a", buffering=1, encoding="utf-8")


@contextlib.contextmanager
def local_copy(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """The file on this machine, for libraries that read from a path: itself, or a copy that goes when the block ends.

    Raises:
        StorageError: it lies in a bucket and cannot be read.
    """
    if not is_bucket(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / epath.Path(path).name
        try:
            with epath.Path(path).open("rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)
        except OSError as error:
            raise StorageError(f"{os.fspath(path)} cannot be read ({error.strerror or error})") from error
        yield copy


def make_directory(path: str | os.PathLike[str], what: str = "the folder") -> None:
    """Makes a folder with those above it; one that is there is fine. Buckets have none.

    Raises:
        StorageError: there is a file or a link (a link inside a directory of ours may lead anywhere), or it cannot be made.
    """
    if is_bucket(path):
        return
    place = pathlib.Path(path)
    if place.is_symlink():
        raise StorageError(
            f"{what} {place} is a link to {os.readlink(place)}: remove it, or name what it leads to"
        )
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file, not a directory" if place.is_file() else error.strerror
        raise StorageError(f"{what} {place} cannot be written: {reason}") from error


def remove_temporary_files(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files that writers killed half-way have left in a local folder of ours."""
    if not is_bucket(folder):
        for left in pathlib.Path(folder).glob(f".*{TEMPORARY_MARK}*"):
            if left.is_symlink() or left.is_file():
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary_file_beside(path: str | os.PathLike[str]) -> Iterator[tuple[int, pathlib.Path]]:
    """A new local file beside `path`, which takes its name at the end: descriptor and temporary name."""
    place = pathlib.Path(path)
    temporary = place.with_name(f".{place.name[:200]}{TEMPORARY_MARK}{secrets.token_hex(4)}")
    descriptor = os.open(temporary, _CREATE_FLAGS, _PERMISSIONS)
    try:
        permissions = stat.S_IMODE(os.fstat(descriptor).st_mode)
        yield descriptor, temporary
        with _open_descriptor(
            temporary
        ) as written:  # a library may have put another file there, with permissions of its own
            os.fchmod(written, permissions)
            os.fsync(written)
        os.replace(temporary, place)
        with _open_descriptor(place.parent) as folder:  # a rename is on the disk once its folder is
            os.fsync(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _open_descriptor(path: pathlib.Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{os.fspath(path)} cannot be written: {error.strerror or error}") from error
