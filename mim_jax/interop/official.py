"""Weights of the papers' own PyTorch code to our parameter trees. Names and layouts only; arrays come from anywhere."""

import re
from collections.abc import Mapping

import numpy as np

from mim_jax.models.vit import Params

_RENAMES = (
    (r"^(encoder\.)?patch_embed\.proj\.", "encoder.patch_embed."),
    (r"^(encoder\.)?(cls_token|pos_embed)$", r"encoder.\2"),
    (r"^(encoder\.)?norm\.", "encoder.norm."),
    (r"^mask_positional_token$", "mask_token"),
    (r"^decoder\.", "head."),
    (r"\bgamma_([12])$", r"ls\1.gamma"),
    (r"\bnorm(\d?)\.weight$", r"norm\1.scale"),
    (r"\bfc_norm\.weight$", "fc_norm.scale"),
)


def _blocks(name: str) -> str:
    return re.sub(r"^(?:encoder\.)?blocks\.(\d+)\.", lambda m: f"encoder.block_{int(m[1]):02d}.", name)


def _leaf(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Torch layouts to ours: Linear [out, in] and patch convolution [out, c, y, x] to kernels [in, out]."""
    if not name.endswith(".weight"):
        return name, value
    if value.ndim == 4:  # our patches are flattened (row, column, channel)
        value = value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    else:
        value = value.T
    return name.removesuffix("weight") + "kernel", value


def _fuse_qkv(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """MaPeT's separate `attn.q` and `attn.kv` (rows K, then V) to our fused projection."""
    out = {}
    for name, value in flat.items():
        if ".attn.q." in name:
            other = flat[name.replace(".attn.q.", ".attn.kv.")]
            out[name.replace(".attn.q.", ".attn.qkv.")] = np.concatenate([value, other], axis=-1)
        elif ".attn.kv." not in name:
            out[name] = value
    return out


def nest(flat: Mapping[str, np.ndarray], separator: str = ".") -> Params:
    """{"a.b": x} to {"a": {"b": x}}."""
    tree: Params = {}
    for name, value in flat.items():
        *path, last = name.split(separator)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def from_mapet(state: Mapping[str, np.ndarray]) -> Params:
    """MaPeT's official state dict (or a dict of its gradients) to the tree of `TokenPredictor`."""
    flat = {}
    for name, value in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        name, value = _leaf(_blocks(name), np.asarray(value))
        flat[name] = value
    return nest(_fuse_qkv(flat))
