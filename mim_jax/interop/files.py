"""Weights as files: safetensors in and out, and the check that a tree fits a network. Weights are data: no pickle is opened."""

import math
import os
import re
from collections.abc import Mapping

import ml_dtypes  # Gives numpy the name bfloat16, by which safetensors asks for it.
import numpy as np
from etils.epath import Path
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mim_jax.interop.check_weights import refuse_untrained_weights, some
from mim_jax.interop.errors import WeightsError
from mim_jax.models.vit import Params
from mim_jax.reading import Unreadable, check_file
from mim_jax.storage import StorageError, atomic_write_path, local_copy, parse_path

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".tar")


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by their names; bfloat16 becomes float32, everything else stays as it is stored.

    Raises:
        WeightsError: there is no such file, it is a pickle, it is damaged, or it holds a type that numpy does not have.
    """
    file = existing(path)
    if file.suffix in PICKLES:
        raise WeightsError(
            f"{file} is a pickle, and pickles can run programs: convert it once, "
            f"python -m mim_jax.convert_torch {file} {file.with_suffix('.safetensors')}"
        )
    if file.suffix != ".safetensors":
        raise WeightsError(f"weights are read from a .safetensors file, not from {file}")
    try:
        with local_copy(file) as local_file, safe_open(local_file, framework="np") as tensors:
            return {name: plain(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, OverflowError, ValueError) as error:
        raise WeightsError(f"{file} is damaged or no safetensors file: copy or convert it again") from error
    except (AttributeError, TypeError) as error:  # numpy has no such type
        kind = re.search(r"float\w+|int\w+|complex\w+", str(error))
        raise WeightsError(
            f"{file} holds tensors of a type that cannot be read here{f' ({kind[0]})' if kind else ''}: convert them to float32"
        ) from error


def write_weights(
    path: str | os.PathLike[str], flat: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors by name as a safetensors file: whole, or not at all.

    Raises:
        WeightsError: the name does not end in .safetensors, or the folder is not there or not writable.
    """
    file = parse_path(path, "the file to write")
    if file.suffix != ".safetensors":
        raise WeightsError(f"weights are written to a .safetensors file, not to {file}")
    # asarray keeps a tensor without dimensions as it is; ascontiguousarray would make it a vector.
    tensors = {name: np.asarray(value, order="C") for name, value in flat.items()}
    try:
        with atomic_write_path(file) as name:
            save_file(tensors, name, metadata=dict(metadata or {}))
    except (SafetensorError, StorageError) as error:
        raise WeightsError(
            str(error) if isinstance(error, StorageError) else f"{file} cannot be written: {error}"
        ) from error


def split_heads(shapes: Params, tree: Params) -> Params:
    """The tree with attention projections that are matrices cut into the heads that the network has.

    In others' weights q, k and v are blocks of columns of one matrix, and heads are contiguous in each, so this is a reshape:
    `attn/qkv` kernel [D, 3 D] to [D, 3, heads, head_dim], bias [3 D] to [3, heads, head_dim], q_bias and v_bias [D] to
    [heads, head_dim]; `attn/proj` kernel [D, D] to [heads, head_dim, D]. Everything else stays as it is.

    Args:
        shapes: nested dict of what the network expects. tree: nested dict of arrays.
    """
    expected, flat = flatten_dict(shapes, sep="/"), flatten_dict(tree, sep="/")
    for name, value in flat.items():
        if name in expected and (
            projection := re.search(r"attn/(qkv|proj)/(kernel|bias|q_bias|v_bias)$", name)
        ):
            shape = tuple(expected[name].shape)
            matrix: tuple[int, ...] = (math.prod(shape),)
            if projection[2] == "kernel":
                inputs = 1 if projection[1] == "qkv" else len(shape) - 1
                matrix = math.prod(shape[:inputs]), math.prod(shape[inputs:])
            if np.shape(value) == matrix:
                flat[name] = value.reshape(shape)
    split: Params = unflatten_dict(flat, sep="/")
    return split


def fit(shapes: Params, tree: Params, what: str) -> Params:
    """The tree of weights in the types of the network's parameters, and with its heads (`split_heads`).

    Args:
        shapes: nested dict of what the network expects; its leaves have a shape and a dtype (`jax.eval_shape`).
        tree: nested dict of numpy arrays.
        what: names the weights in the error, e.g. the file.
    Raises:
        WeightsError: parameters are missing, unexpected, of another shape or not finite; one sentence.
    """
    expected, values = flatten_dict(shapes, sep="/"), flatten_dict(split_heads(shapes, tree), sep="/")
    both = [name for name in expected if name in values]
    reshaped = [name for name in both if np.shape(values[name]) != tuple(expected[name].shape)]
    faults = {
        "missing": [name for name in expected if name not in values],
        "without a place": [name for name in values if name not in expected],
        "of another shape": [
            f"{name} {list(np.shape(values[name]))} where {list(expected[name].shape)} is expected"
            for name in reshaped
        ],
    }
    messages = [f"{some(names)} {fault}" for fault, names in faults.items() if names]
    if messages:
        raise WeightsError(f"the weights of {what} do not fit this network: {'; '.join(messages)}")
    refuse_untrained_weights({name: values[name] for name in both}, what)
    cast = {name: np.asarray(values[name], expected[name].dtype) for name in both}
    tree = unflatten_dict(cast, sep="/")
    return tree


def existing(path: str | os.PathLike[str]) -> Path:
    """The file named, or a WeightsError that says what is there instead."""
    file = parse_path(path, "the file of weights")
    try:
        check_file(file)
    except Unreadable as error:
        if file.is_dir():
            raise WeightsError(f"{file} is a folder: name the file of weights in it") from error
        reason = f"there is no file {file}" if error.absent else f"{file} cannot be used ({error})"
        raise WeightsError(f"{reason}: name a file of weights") from error
    return file


def plain(tensor: np.ndarray) -> np.ndarray:
    """bfloat16 as float32, which holds it exactly; any other type as it is."""
    return tensor.astype(np.float32) if tensor.dtype == ml_dtypes.bfloat16 else tensor
