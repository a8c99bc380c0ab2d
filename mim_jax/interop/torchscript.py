"""The tensors of a TorchScript archive (OpenAI's CLIP), without torch and without running any of its code.

torch.jit.load runs what a module defines as __setstate__, and TorchScript can write files. Here the archive's pickle is read
with a table of what it may name: tensors become arrays, modules become bags of attributes, and anything else is refused.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mim_jax.interop.files import WeightsError

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
    except zipfile.BadZipFile:
        return False


def read_torchscript(file: Path) -> dict[str, np.ndarray]:
    """Parameters, buffers and tensor attributes by their dotted names, as in torch's state dict.

    Raises:
        WeightsError: the archive is damaged, or names what is no module and no tensor.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            data = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
            with archive.open(data) as stream:
                root = _Reader(stream, archive, data.removesuffix(".pkl")).load()
            return dict(_tensors(root, ""))
    except WeightsError as error:
        raise WeightsError(f"{file} {error}") from error
    except Exception as error:  # the pickle machine raises nearly anything on damaged bytes
        raise WeightsError(
            f"{file} is a damaged TorchScript archive ({type(error).__name__}: {error})"
        ) from error


class _Reader(pickle.Unpickler):
    """An unpickler for which the world is the table in `find_class`."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _strided
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
        storage: np.ndarray = np.frombuffer(self._archive.read(f"{self._folder}/{key}"), dtype)
        if len(storage) < values:
            raise ValueError(f"storage {key} is too short")
        return storage[:values]


def _strided(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """A tensor of its own from a part of a storage; a part outside of it is an error."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage)):
        raise ValueError("a tensor lies outside its storage")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


def _tensors(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, _Module):
        for attribute, inner in value.attributes.items():
            yield from _tensors(inner, f"{name}.{attribute}" if name else attribute)
