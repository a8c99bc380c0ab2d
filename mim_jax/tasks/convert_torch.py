"""Converts a PyTorch file of weights to safetensors, without running what is in it.

    python -m mim_jax.convert_torch RN50x64.pt RN50x64.safetensors

Names and layout stay torch's; half precision stays float16, bfloat16 becomes float32. Needs torch 2.6 or later: its restricted
reader takes tensors and plain values and no other class. A TorchScript archive (OpenAI's CLIP) needs no torch.
"""

import argparse
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mim_jax.config.arguments import Parser, command
from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import existing, plain, write_weights
from mim_jax.interop.torchscript import is_torchscript, read_torchscript
from mim_jax.storage import parse_path, require_local

USUAL_KEYS = ("model", "state_dict", "module")
TORCH = (2, 6)
"""The oldest torch whose restricted reader is sound (CVE-2025-32434)."""
_scalar = np.float64(0).__reduce__()[0]
"""What numpy's pickles make a number with; its own name has moved between versions."""


@command
def run(argv: Sequence[str]) -> int:
    """Converts one file; the exit code. Mistakes of the user end in one sentence on stderr."""
    parser = Parser("python -m mim_jax.convert_torch", __doc__)
    parser.add_argument("source", metavar="IN", help="the PyTorch file")
    parser.add_argument("target", metavar="OUT.safetensors", help="the file to write, which must not exist")
    parser.add_argument(
        "--key",
        metavar="NAME",
        help="the entry of the file that holds the weights, where it is none of the usual ones (model, state_dict, module),"
        " for example teacher",
    )
    options = parser.parse(argv)
    print(convert(options.source, options.target, options.key))
    return 0


def convert(source: str | Path, target: str | Path, key: str | None = None) -> str:
    """Writes the weights in `source` to `target`; what was written, as a sentence.

    Raises:
        WeightsError: no torch, no weights in the file, a file that wants to run code, or a target that is there already.
    """
    file, out = (
        require_local(existing(source), "PyTorch's files are read from a disk"),
        parse_path(target, "OUT"),
    )
    if file.suffix == ".safetensors":
        raise WeightsError(f"{file} is safetensors already: use it as it is")
    if out.exists() or os.path.islink(out):
        raise WeightsError(f"{out} is there already: delete it or name another file")
    entries: Mapping[str, Any]
    if is_torchscript(file):
        entries, where = read_torchscript(file), ""
    else:
        torch = _torch()
        entries, where = _state_dict(_read(torch, file), key, torch, file)
        try:
            entries = {str(name): _array(torch, value) for name, value in entries.items()}
        except WeightsError as error:
            raise WeightsError(f"{file} {error}") from error
    state = {name: plain(value) for name, value in entries.items() if _is_number(value)}
    dropped = len(entries) - len(state)
    if not state:
        raise WeightsError(f"{file} holds no weights (none of its {dropped} entries is a tensor of numbers)")
    if all(name.startswith("module.") for name in state):  # torch's DataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    # "format" is what transformers asks of a file in torch's layout.
    write_weights(out, state, {"format": "pt", "source": file.name, "converter": "mim_jax.convert_torch"})
    values = sum(value.size for value in state.values())
    types = ", ".join(sorted({str(value.dtype) for value in state.values()}))
    note = f"; {dropped} entries that are no numbers were left out" if dropped else ""
    return f"{out}: {len(state)} tensors, {values:,} values ({types}){where}{note}"


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            "reading a PyTorch file needs torch, which is not installed: pip install torch (only this command needs it)"
        ) from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < TORCH:
        raise WeightsError(
            f"torch {torch.__version__} cannot read files safely: install torch {TORCH[0]}.{TORCH[1]} or later"
        )
    return torch


def _read(torch: Any, file: Path) -> Any:
    """What is in the file, by torch's restricted reader."""
    # What training code leaves beside the weights, and what does nothing when it is read.
    allowed_globals = [
        argparse.Namespace,
        np.dtype,
        *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")),
        *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    ]
    try:
        with torch.serialization.safe_globals(allowed_globals), warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError, ... by what is wrong
        raise WeightsError(_refusal(file, error)) from error


def _refusal(file: Path, error: Exception) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
    if wanted is None:
        return f"{file} is damaged, or no PyTorch file that can be read without running it: copy or download it again"
    name = wanted[1]
    if name.startswith("dall_e"):
        return (
            f"{file} is OpenAI's DALL-E as a pickled module, which could run any program: it is not read; the same weights "
            "as plain tensors are Hugging Face's facebook/flava-image-codebook, which is safe to read"
        )
    return (
        f"{file} wants to create {name} while it is read, which could run any program: it is not read; have whoever made "
        "it save a plain state_dict()"
    )


def _state_dict(loaded: Any, key: str | None, torch: Any, file: Path) -> tuple[Mapping[str, Any], str]:
    """The mapping of names to tensors, and where it was found."""

    def holds_weights(value: Any) -> bool:
        return isinstance(value, Mapping) and any(torch.is_tensor(part) for part in value.values())

    if key is None and holds_weights(loaded):
        return loaded, ""
    entries = loaded if isinstance(loaded, Mapping) else {}
    for name in USUAL_KEYS if key is None else (key,):
        if holds_weights(entries.get(name)):
            return entries[name], f" from its entry {name!r}"
    able = [str(name) for name, value in entries.items() if holds_weights(value)]
    if able:
        raise WeightsError(
            f"{file} has weights in {', '.join(able)}"
            + (f", and not in {key!r}" if key else ": name one with --key")
        )
    if key is not None and key not in entries:
        raise WeightsError(f"{file} has no entry {key!r}: leave --key out, or name another")
    raise WeightsError(f"{file} holds no weights (a {type(loaded).__name__} without tensors)")


def _array(torch: Any, value: Any) -> np.ndarray | None:
    """A tensor as numpy; None for anything else."""
    if not torch.is_tensor(value) or value.is_quantized:
        return None
    if (
        value.layout == torch.strided
        and value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ):
        raise WeightsError(
            f"holds a tensor {list(value.shape)} that repeats the {value.untyped_storage().nbytes()} bytes it has: no weights do"
        )
    value = value.detach().cpu().to_dense() if value.layout != torch.strided else value.detach().cpu()
    known = (torch.float16, torch.float32, torch.float64)
    if value.is_floating_point() and value.dtype not in known:
        value = value.float()
    array: np.ndarray = value.contiguous().numpy()
    return array


def _is_number(value: np.ndarray | None) -> bool:
    """Whether it is an array of floating-point (bfloat16 too) or whole numbers."""
    return value is not None and (value.dtype == ml_dtypes.bfloat16 or value.dtype.kind in "fiu")
