"""Weights of the papers' own PyTorch code to our parameter trees. Names and layouts only; arrays come from anywhere.

Each function takes an official state dict (or a dict of its gradients: the maps are linear) and gives the tree of the
network named, with attention projections that are still matrices: `files.fit` cuts them into heads. Fixed position tables come along as `pos_embed`; drop them for a network that has its own.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from mim_jax.models.vit import Params

Renames = Sequence[tuple[str, str]]

_COMMON: Renames = (
    (r"blocks\.(\d)\.", r"block_0\1."),
    (r"blocks\.(\d\d)\.", r"block_\1."),
    (r"\bgamma_([12])$", r"ls\1.gamma"),
    (r"attn\.([qv]_bias)$", r"attn.qkv.\1"),
    (r"\b(norm\d?|fc_norm)\.weight$", r"\1.scale"),
)
_MAPET: Renames = (
    (r"^patch_embed\.proj\.", "encoder.patch_embed."),
    (r"^(cls_token|pos_embed)$", r"encoder.\1"),
    (r"^(norm|blocks)\.", r"encoder.\1."),
    (r"^mask_positional_token$", "mask_token"),
    (r"^decoder\.", "head."),
)
_MAE: Renames = (
    (r"^patch_embed\.proj\.", "encoder.patch_embed."),
    (r"^(cls_token|pos_embed)$", r"encoder.\1"),
    (r"^(norm|blocks)\.", r"encoder.\1."),
    (r"^decoder_(norm|blocks|pos_embed)", r"decoder.\1"),
    (r"^decoder_embed\.", "decoder_embed."),
    (r"^decoder_pred\.", "head."),
)
_SIMMIM: Renames = (
    (r"^encoder\.patch_embed\.proj\.", "encoder.patch_embed."),
    (r"^encoder\.mask_token$", "mask_token"),
    (r"^encoder\.rel_pos_bias\.relative_position_bias_table$", "encoder.relative_position_bias.table"),
    (r"^decoder\.0\.", "head."),
)


def from_mapet(state: Mapping[str, np.ndarray]) -> Params:
    """MaPeT to `MaskedPredictor`; its separate q and kv projections become our fused one."""
    return nest(_fuse_qkv(_renamed(state, _MAPET)))


def from_mae(state: Mapping[str, np.ndarray]) -> Params:
    """MAE, and AMT on MAE, to `EncoderDecoder`."""
    return nest(_renamed(state, _MAE))


def from_simmim(state: Mapping[str, np.ndarray]) -> Params:
    """SimMIM's ViT to `MaskedPredictor`; its head's values (channel, row, column) become our (row, column, channel)."""
    flat = {name: value for name, value in _renamed(state, _SIMMIM).items() if not name.endswith("_index")}
    for name in ("head.kernel", "head.bias"):
        value = flat[name]
        side = round((value.shape[-1] // 3) ** 0.5)
        shape = value.shape[:-1]
        flat[name] = np.moveaxis(value.reshape(*shape, 3, side, side), -3, -1).reshape(*shape, -1)
    return nest(flat)


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


def _renamed(state: Mapping[str, np.ndarray], renames: Renames) -> dict[str, np.ndarray]:
    flat = {}
    for official, value in state.items():
        name = official
        for pattern, replacement in (*renames, *_COMMON):
            name = re.sub(pattern, replacement, name)
        if name.endswith(".weight"):
            name, value = name.removesuffix("weight") + "kernel", _kernel(np.asarray(value))
        flat[name] = np.asarray(value)
    return flat


def _kernel(weight: np.ndarray) -> np.ndarray:
    """Torch's Linear [out, in] and convolution [out, c, y, x] to ours [in, out]; patches are (row, column, channel)."""
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    return weight.T


def _fuse_qkv(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`attn.q` and `attn.kv` (K, then V) to `attn.qkv`."""
    out = {}
    for name, value in flat.items():
        if ".attn.q." in name:
            other = flat[name.replace(".attn.q.", ".attn.kv.")]
            out[name.replace(".attn.q.", ".attn.qkv.")] = np.concatenate([value, other], axis=-1)
        elif ".attn.kv." not in name:
            out[name] = value
    return out
