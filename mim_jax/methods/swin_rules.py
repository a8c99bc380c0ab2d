"""What the Swin codes say of parameters by name (docs/papers/dark_secrets.md 1.2, 1.4)."""

import math
from collections.abc import Sequence

from mim_jax.methods.rules import Initialiser, constant, ones, truncated_normal, zeros
from mim_jax.models.swin import SwinConfig

SWIN_DECAY: Sequence[tuple[str, bool]] = ((r"cpb_fc\d/", False), (r"kernel$", True), (r".", False))
"""Not: vectors, the position bias' network and tables, the logit scale, the MASK token."""


def swin_init(net: SwinConfig) -> Sequence[tuple[str, Initialiser]]:
    """Both norms of a V2 block start at 0: the block is the identity. timm's truncated normal of 0.02 hardly cuts."""
    normal = truncated_normal(0.02, 100.0)
    return (
        *([(r"block_\d+/norm\d/scale$", zeros)] if net.version == 2 else []),
        (r"logit_scale$", constant(math.log(10.0))),
        (r"(kernel|mask_token|table)$", normal),
        (r"scale$", ones),
        (r"bias$", zeros),
    )


def swin_layers(net: SwinConfig) -> Sequence[tuple[str, int]]:
    """SimMIM's ids for layer-wise rates: 0 for the embedding, g + 1 for block g, a merging with the blocks before it."""
    blocks = [(rf"encoder/block_{index:02d}/", index + 1) for index in range(net.depth)]
    ends = [sum(net.depths[: stage + 1]) for stage in range(len(net.depths) - 1)]
    merges = [(rf"encoder/merge_{stage}/", end) for stage, end in enumerate(ends)]
    return (*blocks, *merges, (r"(mask_token|patch_embed/.*|patch_norm/.*)$", 0), (r".", net.depth + 1))
