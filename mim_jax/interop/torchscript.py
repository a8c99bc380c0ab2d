"""The tensors of a TorchScript archive (OpenAI's CLIP), without torch and without running any of its code.

torch.jit.load runs what a module defines as __setstate__, and TorchScript can write files. Here the archive's pickle is read
with a table of what it may name: tensors become arrays, modules become bags of attributes, and anything else is refused.
"""

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mim_jax.interop.errors import WeightsError

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

MAX_EXPANSION = 16
"""Times that an archive may be larger than its file."""
MAX_PICKLE_BYTES = 64 << 20
"""Bytes of the archive's pickle: names and shapes."""
MAX_TENSORS = 100_000
MAX_COPIES = 4
"""Times that the values of an archive may be in its tensors: they may share storages."""
MAX_DEPTH = 64
"""Nesting of modules."""


class _Module:
    """What the archive calls a module: its attributes, and nothing that can be called."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise WeightsError("has a module that is set up by code of its own, which is not run")
        self.attributes: dict[str, Any] = state


def is_torchscript(file: Path) -> bool:
    """Whether it is a zip archive with TorchScript's constants beside its data."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_torchscript(file: Path) -> dict[str, np.ndarray]:
    """Parameters, buffers and tensor attributes by their dotted names, as in torch's state dict.

    Raises:
        WeightsError: the archive is damaged, or names what is no module and no tensor.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            data = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
            _check_sizes(archive, file)
            with archive.open(data) as stream:
                root = _Reader(stream, archive, data.removesuffix(".pkl")).load()
            return _tensors(root)
    except WeightsError as error:
        raise WeightsError(f"{file} {error}") from error
    except Exception as error:  # the pickle machine raises nearly anything on damaged bytes
        raise WeightsError(f"{file} is a damaged TorchScript archive: download it again") from error


def _check_sizes(archive: zipfile.ZipFile, file: Path) -> None:
    """Raises WeightsError where the archive unfolds to more than weights would: torch does not compress them."""
    total = sum(info.file_size for info in archive.infolist())
    if total > MAX_EXPANSION * file.stat().st_size:
        raise WeightsError(f"has {file.stat().st_size} bytes that unfold to {total}, which are no weights")
    pickled = max(info.file_size for info in archive.infolist() if info.filename.endswith(".pkl"))
    if pickled > MAX_PICKLE_BYTES:
        raise WeightsError(f"has a description of {pickled} bytes, more than {MAX_PICKLE_BYTES}")


class _Reader(pickle.Unpickler):
    """An unpickler that creates only what the table in `find_class` allows."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self._archive, self._folder = archive, folder
        self._storages: dict[tuple[str, str], np.ndarray] = {}
        self._bytes_left = MAX_COPIES * sum(info.file_size for info in archive.infolist())

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        if module == "torch.jit._pickle":  # typed lists: build_intlist(list), restore_type_tag(value, type)
            return lambda value, *_: value
        raise WeightsError(f"wants to create {module}.{name} while it is read, which is no part of weights")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: ("storage", type, name of its file, device, number of values)."""
        _, dtype, key, _, values = pid
        if not isinstance(dtype, np.dtype) or not isinstance(values, int) or not re.fullmatch(r"\w+", key):
            raise WeightsError("has a storage that is described in another way")
        values_of_storage = self._storages.get((key, dtype.str))
        if values_of_storage is None:
            values_of_storage = np.frombuffer(self._archive.read(f"{self._folder}/{key}"), dtype)
            self._storages[key, dtype.str] = values_of_storage
        if not 0 <= values <= len(values_of_storage):
            raise WeightsError(f"claims {values} values in a storage that has {len(values_of_storage)}")
        return values_of_storage[:values]

    def _tensor(
        self, storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> np.ndarray:
        view = _strided(storage, offset, size, stride)
        self._bytes_left -= view.nbytes
        if self._bytes_left < 0:
            raise WeightsError("has tensors that share their values so often that they are no weights")
        return view.copy()


def _strided(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """A view of a part of a storage; a part outside of it, or larger than it, is an error."""
    if len(size) != len(stride) or len(size) > 32:
        raise WeightsError("has a tensor of other strides than axes")
    if not all(isinstance(number, int) and number >= 0 for number in (offset, *size, *stride)):
        raise WeightsError("has a tensor whose shape is none")
    if 0 in size:
        return np.zeros(tuple(min(length, 1) for length in size), storage.dtype).reshape(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if last >= len(storage) or count > len(storage):
        raise WeightsError(
            f"has a tensor {list(size)} that lies outside its storage of {len(storage)} values"
        )
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _tensors(root: Any) -> dict[str, np.ndarray]:
    """Dotted name -> tensor."""
    tensors: dict[str, np.ndarray] = {}
    visited = 0
    stack: list[tuple[Any, str, int]] = [(root, "", 0)]
    while stack:
        value, name, depth = stack.pop()
        visited += 1
        if visited > MAX_TENSORS or depth > MAX_DEPTH:
            raise WeightsError("has modules inside each other without end")
        if isinstance(value, np.ndarray):
            tensors[name] = value
        elif isinstance(value, _Module):
            children = [
                (child, f"{name}.{attribute}" if name else str(attribute), depth + 1)
                for attribute, child in value.attributes.items()
            ]
            stack.extend(reversed(children))
    return tensors
