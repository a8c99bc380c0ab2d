"""Reading .npy and .npz that anybody may have made: what a file claims is compared with what it can hold before memory is asked for.

Plain numbers and texts only: a pickle is never executed.
"""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from etils import epath

from mim_jax.reading import Unreadable, check_file
from mim_jax.storage import is_bucket

Array = npt.NDArray[Any]

_DEFLATED = 1100
"""Times that deflate makes bytes fewer at most (1032), and a little."""
_KINDS = "biufcSU"
"""numpy's kinds that are read: numbers and texts."""
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
)
"""What zipfile raises: no archive, corrupt bytes, unknown compression, encryption, a cut, odd numbers."""


class Header(NamedTuple):
    """What the head of an .npy file claims; start: bytes before the values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def size(self) -> int:
        """Bytes of the values."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


def read_header(stream: IO[bytes]) -> Header:
    """The head of an .npy file. Raises Unreadable, OSError."""
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:  # by what is in it
        raise Unreadable("it is not what numpy.save writes") from error
    if dtype.hasobject:
        raise Unreadable("it holds Python objects, a pickle, which is never opened: save plain numbers")
    if dtype.names is not None or dtype.kind not in _KINDS:
        raise Unreadable(f"it holds {dtype}, no numbers")
    if any(length < 0 for length in shape):
        raise Unreadable(f"it claims the shape {list(shape)}")
    return Header(shape, dtype, stream.tell())


def open_npy(path: str | os.PathLike[str]) -> Array:
    """An .npy file: mapped into memory where it lies on a disk, read into memory from a bucket. Raises Unreadable."""
    size = check_file(path)
    try:
        with epath.Path(path).open("rb") as stream:
            header = read_header(stream)
            if header.start + header.size != size:
                raise Unreadable(f"it claims {header.dtype} {list(header.shape)} and has {size} bytes")
            if is_bucket(path) or not header.size:  # nothing cannot be mapped
                stream.seek(0)
                whole: Array = np.lib.format.read_array(stream, allow_pickle=False)
                return whole
        mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror or error}") from error
    return mapped


class Archive:
    """An .npz file of this machine; names: of its arrays. Close it, or use it in a `with`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises Unreadable."""
        self._file_size = check_file(path)
        try:
            self._zip = zipfile.ZipFile(Path(path))
        except OSError as error:
            raise Unreadable(f"it cannot be read: {error.strerror or error}") from error
        except _ZIP_ERRORS as error:
            raise Unreadable(
                "it holds one array" if _is_npy(path) else "it is no .npz archive, or a damaged one"
            ) from error
        members = [info.filename for info in self._zip.infolist()]
        if len(set(members)) != len(members):
            raise Unreadable("it holds two members of one name")
        self.names = [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
        self.others = [name for name in members if not name.endswith(".npy")]

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def header(self, name: str) -> Header:
        """What an array claims. Raises Unreadable."""
        with self._opened(name) as stream:
            return read_header(stream)

    def load(self, name: str) -> Array:
        """An array, whole. Raises Unreadable, also where it claims more than the file or the machine's memory holds."""
        info = self._zip.getinfo(f"{name}.npy")
        with self._opened(name) as stream:
            header = read_header(stream)
            if header.start + header.size != info.file_size:
                raise Unreadable(
                    f"it claims {header.dtype} {list(header.shape)} and has {info.file_size} bytes"
                )
            packed = min(info.compress_size, self._file_size)
            most = packed * (1 if info.compress_type == zipfile.ZIP_STORED else _DEFLATED)
            if info.file_size > most + 1000:
                raise Unreadable(f"it claims {info.file_size} bytes of {packed} in the file")
            if header.size > (free := free_memory()):
                raise Unreadable(
                    f"it takes {header.size / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
                )
        with self._opened(name) as stream:
            array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        return array

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self._zip.open(f"{name}.npy") as stream:
                yield stream
        except Unreadable:
            raise
        except OSError as error:
            raise Unreadable(f"it cannot be read: {error.strerror or error}") from error
        except _ZIP_ERRORS as error:
            encrypted = self._zip.getinfo(f"{name}.npy").flag_bits & 1
            raise Unreadable(
                "it is encrypted" if encrypted else "it is damaged, or compressed as numpy never does"
            ) from error


def _is_npy(path: str | os.PathLike[str]) -> bool:
    with open(path, "rb") as stream:
        return stream.read(6) == b"\x93NUMPY"


def free_memory() -> int:
    """Bytes that this machine can still give."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):  # no Linux: no bound is known
        return 2**63
