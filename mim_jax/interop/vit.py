"""ViT weights of other libraries to our `encoder` tree, with what they tell about the network."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict

from mim_jax.interop.check_weights import refuse_untrained_weights
from mim_jax.interop.errors import WeightsError
from mim_jax.interop.official import from_mae
from mim_jax.interop.parameter_names import Flat, detect_naming, translate
from mim_jax.models.vit import Params, ViTConfig

HEAD_WIDTH = 64
"""Channels of a head in nearly every published ViT."""


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """What the weights of an encoder tell about it.

    naming: whose code uses these names. num_positions: rows of the position table, CLS included (None = no table). grid: (rows, columns)
    of patches, taken for square (None = the weights do not tell). heads: known from a relative position bias only. norm:
    final | mean (meant for the mean of the patch tokens) | none. left_out: names that are not used. Not in the weights but
    usual with these names: norm_eps, activation.
    """

    naming: str
    width: int
    depth: int
    patch: int
    hidden: int
    num_positions: int | None
    grid: tuple[int, int] | None
    heads: int | None
    cls: bool
    layer_scale: bool
    relative_bias: str
    qkv_bias: str
    patch_bias: bool
    pre_norm: bool
    norm: str
    norm_eps: float
    activation: str
    left_out: tuple[str, ...]

    def config(self, heads: int | None = None, image_size: tuple[int, int] | None = None) -> ViTConfig:
        """The network of these weights.

        Args:
            heads: None = as the weights tell, else width / 64.
            image_size: (height, width) in pixels; None = that of the position table.
        Raises:
            WeightsError: heads do not divide the width, or the weights do not tell the image size.
        """
        heads = heads or self.heads or max(1, self.width // HEAD_WIDTH)
        if self.width % heads:
            raise WeightsError(
                f"{heads} heads do not divide the width {self.width}: give the number of heads"
            )
        if image_size is None and self.grid is None:
            raise WeightsError("these weights do not tell their image size: give it")
        if image_size is None and self.grid is not None:
            image_size = (self.grid[0] * self.patch, self.grid[1] * self.patch)
        assert image_size is not None
        exact = int(self.width * (self.hidden / self.width)) == self.hidden
        return ViTConfig(
            image_size=image_size,
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            heads=heads,
            # ViTConfig cuts width * ratio to an integer; half a channel more makes it this one.
            mlp_ratio=(self.hidden if exact else self.hidden + 0.5) / self.width,
            positions="none" if self.num_positions is None else "learned",
            relative_bias=self.relative_bias,
            cls=self.cls,
            layer_scale=1.0 if self.layer_scale else None,
            qkv_bias=self.qkv_bias,
            norm_eps=self.norm_eps,
            pre_norm=self.pre_norm,
            activation=self.activation,
            patch_bias=self.patch_bias,
        )

    def describe(self) -> str:
        """One sentence for the user."""
        positions = "no position table" if self.num_positions is None else f"{self.num_positions} positions"
        parts = {
            "CLS": self.cls,
            "LayerScale": self.layer_scale,
            f"relative bias {self.relative_bias}": self.relative_bias != "none",
            "a norm before block 0": self.pre_norm,
        }
        has = ", ".join([positions, *(part for part, is_present in parts.items() if is_present)])
        groups = list(dict.fromkeys(name.split(".")[0] for name in self.left_out))
        left = f"; left out: {', '.join(groups)}" if groups else ""
        return f"{self.naming}: {self.depth} blocks of width {self.width}, patch {self.patch}, {has}{left}"


def encoder_from(
    state: Mapping[str, np.ndarray], prefix: str | None = None
) -> tuple[Params, EncoderSpec]:  # fmt: skip
    """A PyTorch ViT's state dict to the tree of our `ViT`, and its spec.

    Naming is recognised: timm, DINO, DeiT, MoCo v3, MAE, MaPeT, BEiT, SimMIM; Hugging Face ViT, ViTMAE, BEiT, DINO, DINOv2;
    CLIP by Hugging Face and OpenAI. Heads, decoders, text towers and momentum copies are left out.

    Args:
        state: names to arrays in torch's layout.
        prefix: what the encoder's names begin with, e.g. "teacher."; None = found.
    Raises:
        WeightsError: no ViT or several, or one with parts that ours does not have.
    """
    naming, prefix = detect_naming(state, prefix)
    flat, left_out = translate(state, naming, prefix)
    qkv_bias = _fuse_qkv(flat)
    grid, heads = _normalise_positions(flat)
    norm = _final_norm(flat, left_out)
    tree: Params = from_mae(flat)["encoder"]
    patch = flat["patch_embed.proj.weight"]
    if patch.shape[2] != patch.shape[3]:
        raise WeightsError(
            f"the patches of these weights are {patch.shape[2]} x {patch.shape[3]} pixels: ours are square"
        )
    refuse_untrained_weights(flatten_dict({"encoder": tree}, sep="/"), "the encoder")
    shared = "relative_position_bias" in tree
    per_block = any("relative_position_bias" in tree[name] for name in tree if name.startswith("block_"))
    if shared and per_block:
        raise WeightsError(
            "these weights have a relative position bias per block and one for all: only one is supported"
        )
    spec = EncoderSpec(
        naming=naming.name,
        width=patch.shape[0],
        depth=1 + max(int(name[6:]) for name in tree if name.startswith("block_")),
        patch=patch.shape[2],
        hidden=len(flat.get("blocks.0.mlp.fc1.weight", ())),
        num_positions=flat["pos_embed"].shape[1] if "pos_embed" in flat else None,
        grid=grid,
        heads=heads,
        cls="cls_token" in tree,
        layer_scale="ls1" in tree.get("block_00", {}),
        relative_bias="shared" if shared else "per_block" if per_block else "none",
        qkv_bias=qkv_bias,
        patch_bias="bias" in tree["patch_embed"],
        pre_norm="norm_pre" in tree,
        norm=norm,
        norm_eps=naming.norm_eps,
        activation=naming.activation,
        left_out=tuple(left_out),
    )
    return tree, spec


def _fuse_qkv(flat: Flat) -> str:
    """Separate q, k, v (or q, kv) to one, in place; which biases there are: qkv | qv | none."""
    for name in [name for name in flat if name.endswith(".attn.q.weight")]:
        attn = name.removesuffix("q.weight")
        for kind in ("weight", "bias"):
            parts = {part: flat.pop(f"{attn}{part}.{kind}", None) for part in ("q", "k", "v", "kv")}
            present = {part: value for part, value in parts.items() if value is not None}
            if list(present) in (["q", "k", "v"], ["q", "kv"]):
                flat[f"{attn}qkv.{kind}"] = np.concatenate(list(present.values()))
            elif list(present) == ["q", "v"] and kind == "bias":
                flat[f"{attn}q_bias"], flat[f"{attn}v_bias"] = present["q"], present["v"]
            elif present or kind == "weight":
                had = ", ".join(present) or "none"
                raise WeightsError(f"of the q, k and v {kind}s of {attn[:-1]} these weights have {had}")
    if "blocks.0.attn.qkv.bias" in flat:
        return "qkv"
    return "qv" if "blocks.0.attn.q_bias" in flat else "none"


def _normalise_positions(flat: Flat) -> tuple[tuple[int, int] | None, int | None]:
    """Reshapes CLS and the position table to [1, n, D], in place; returns the grid and the heads where the weights tell."""
    width = flat["patch_embed.proj.weight"].shape[0]
    for name in ("cls_token", "pos_embed"):
        if name in flat:
            if flat[name].size % width or not flat[name].size:
                raise WeightsError(
                    f"{name} is {list(flat[name].shape)}, but the patch projection is of width {width}"
                )
            flat[name] = flat[name].reshape(1, -1, width)
    tables = [value for name, value in flat.items() if name.endswith("relative_position_bias.table")]
    prefix = int("cls_token" in flat)
    if "pos_embed" in flat:
        num_positions = flat["pos_embed"].shape[1]
        if prefix and _side(num_positions) and not _side(num_positions - prefix):
            # timm's no_embed_class: CLS has no position, which is a position of 0.
            flat["pos_embed"] = np.pad(flat["pos_embed"], ((0, 0), (1, 0), (0, 0)))
            num_positions += 1
        side = _side(num_positions - prefix)
    elif tables:
        double = _side(len(tables[0]) - 3 * prefix)  # 2 side - 1
        side = (double + 1) // 2 if double else None
    else:
        side = None
    return (side, side) if side else None, tables[0].shape[1] if tables else None


def _side(area: int) -> int | None:
    """The side of a square; None if it is none."""
    side = round(area**0.5)
    return side if side > 0 and side * side == area else None


def _final_norm(flat: Flat, left_out: list[str]) -> str:
    """The one norm after the blocks, in place: the final one, else the one that is meant for the mean."""
    pooled = {name: flat.pop(name) for name in ("fc_norm.weight", "fc_norm.bias") if name in flat}
    if "norm.weight" in flat:
        left_out.extend(pooled)
        return "final"
    flat.update({name.replace("fc_norm", "norm"): value for name, value in pooled.items()})
    return "mean" if pooled else "none"
