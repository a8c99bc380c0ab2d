"""Weights of other people's Swin Transformers to our parameter trees (docs/papers/dark_secrets.md 1.3). Names and layouts only.

Known are the names of microsoft/Swin-Transformer (versions 1 and 2), SimMIM, timm, transformers, and the "Dark Secrets"
depth code (`rpe_mlp` for `cpb_mlp`, `norm3` for `norm`).
"""

import re
from collections.abc import Mapping

import numpy as np

from mim_jax.interop.official import Renames, nest
from mim_jax.models.vit import Params

# Tables that follow from shapes alone; many checkpoints carry them.
_DERIVED = re.compile(r"(relative_coords_table|relative_position_index|attn_mask|attn\.k_bias)$")
_RENAMES: Renames = (
    (r"(^|\.)embeddings\.norm\.", r"\1patch_norm."),  # before its prefix goes: `norm` is the last one
    (r"^((module|model|backbone|swinv2|swin|encoder|embeddings)\.)+", ""),
    (r"^patch_embed\.norm\.", "patch_norm."),
    (r"^(patch_embed\.proj|patch_embeddings\.projection)\.", "patch_embed."),
    (r"^(layernorm|norm3)\.", "norm."),
    (r"^(head\.fc|classifier)\.", "head."),
    # transformers' blocks, version 2 and version 1
    (r"\.attention\.(self\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(self\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(self\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(self\.)?", ".attn."),
    (r"\.relative_position_bias\.relative_position_bias_table$", ".relative_position_bias_table"),
    (
        r"\.layernorm_before\.",
        ".norm1.",
    ),  # in version 2 both come after their branch, whatever they are called
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    # attention
    (r"\.(cpb_mlp|rpe_mlp|continuous_position_bias_mlp)\.0\.", ".cpb_fc1."),
    (r"\.(cpb_mlp|rpe_mlp|continuous_position_bias_mlp)\.2\.", ".cpb_fc2."),
    (r"\.relative_position_bias_table$", ".relative_position_bias.table"),
    (r"\.attn\.([qv]_bias)$", r".attn.qkv.\1"),
)
_OURS = re.compile(
    r"^(head|mask_token|patch_embed|patch_norm|norm|block_\d\d\.(attn|mlp|norm[12])|merge_\d\.(reduction|norm))\b"
)


def from_swin(state: Mapping[str, np.ndarray]) -> Params:
    """A state dict (or one of its gradients: the maps are linear) to the tree of our networks.

    Returns:
        {"encoder": the tree of `Swin`}, with "mask_token" and "head" where the state has them: the tree of a
        `SwinPredictor` (pixels in our order) or of a classifier.
    Raises:
        ValueError: for a name that no known code gives to a Swin's weights.
    """
    flat = {name: np.asarray(value) for name, value in state.items() if not _DERIVED.search(name)}
    flat = {_short(name): value for name, value in flat.items()}
    if "decoder.0.weight" in flat:
        for kind in ("weight", "bias"):
            flat[f"head.{kind}"] = _rows_first(flat.pop(f"decoder.0.{kind}"))
    tree = nest(dict(_leaf(name, value) for name, value in _fused(_numbered(flat)).items()))
    outside: Params = {name: tree.pop(name) for name in ("mask_token", "head") if name in tree}
    return {"encoder": tree, **outside}


def _short(name: str) -> str:
    """The name in the official style, without prefixes; stages and blocks are still counted apart."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _numbered(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Blocks counted through all stages, mergings by the stage before them."""
    blocks = {
        (int(match[1]), int(match[2]))
        for name in flat
        if (match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name))
    }
    index = {
        f"layers.{stage}.blocks.{block}.": number for number, (stage, block) in enumerate(sorted(blocks))
    }
    # timm has a merging in the stage after it, the others in the stage before it: only they have one in the first.
    late = 0 if any(name.startswith("layers.0.downsample.") for name in flat) else 1
    out = {}
    for name, value in flat.items():
        if match := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name):
            ours = f"block_{index[match[0]]:02d}." + name[match.end() :]
        elif match := re.match(r"layers\.(\d+)\.downsample\.", name):
            ours = f"merge_{int(match[1]) - late}." + name[match.end() :]
        else:
            ours = name
        if not _OURS.match(ours):
            raise ValueError(f"{name} is not the name of a Swin's weight in any code that is known here")
        out[ours] = value
    return out


def _fused(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Separate q, k, v projections as one; without a k bias (version 2) the other two stay apart."""
    out = {}
    for name, value in flat.items():
        match = re.match(r"(.*\.attn\.)([qkv])\.(weight|bias)$", name)
        if not match:
            out[name] = value
            continue
        block, letter, kind = match.groups()
        if kind == "bias" and f"{block}k.bias" not in flat:
            out[f"{block}qkv.{letter}_bias"] = value
        elif letter == "q":
            out[f"{block}qkv.{kind}"] = np.concatenate([flat[f"{block}{each}.{kind}"] for each in "qkv"])
    return out


def _leaf(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Torch's `weight` as our `kernel` [in, out] or `scale`; patches are flattened (row, column, channel)."""
    if not name.endswith(".weight"):
        return name, value
    name = name.removesuffix("weight")
    if value.ndim == 1:
        return name + "scale", value
    if value.ndim == 4:
        return name + "kernel", value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    return name + "kernel", value.T


def _rows_first(value: np.ndarray) -> np.ndarray:
    """The pixel decoder's outputs, the first axis, from (channel, row, column) to (row, column, channel)."""
    side = round((len(value) // 3) ** 0.5)
    return np.moveaxis(value.reshape(3, side, side, *value.shape[1:]), 0, 2).reshape(value.shape)
