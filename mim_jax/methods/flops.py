"""Model FLOPs of one example's forward and backward pass: matrix products only, 2 a multiply-add, no recomputation.

A product costs its forward twice more in the backward pass (the gradients of its input and of its kernel), except a
first layer, whose input needs no gradient. What is left out (norms, softmax, GELU, the optimiser) is 1 to 2 % of a
ViT-S; tests hold the sum to XLA's own count.
"""

from mim_jax.models.attention_masks import TwoStreams, last_queries
from mim_jax.models.encoder_decoder import DecoderConfig
from mim_jax.models.swin import SwinConfig
from mim_jax.models.vit import ViTConfig


def dense_flops(rows: int, inputs: int, outputs: int, *, first: bool = False) -> float:
    """A linear layer on `rows` rows; `first` = no gradient with respect to its input."""
    return 2.0 * rows * inputs * outputs * (2 if first else 3)


def block_flops(vit: ViTConfig, *, rows: int, keys: int, area: int | None = None) -> float:
    """One block that updates `rows` rows, which attend to `keys` keys.

    area: logits that are computed a head; rows x keys, unless a constant mask leaves some out.
    """
    width, hidden = vit.width, int(vit.width * vit.mlp_ratio)
    return (
        dense_flops(rows, width, width)  # q
        + dense_flops(keys, width, 2 * width)  # k, v
        + 2
        * dense_flops(1, rows * keys if area is None else area, width)  # q k^T, its product with v; all heads
        + dense_flops(rows, width, width)  # output projection
        + 2 * dense_flops(rows, width, hidden)
    )


def plain_flops(vit: ViTConfig, rows: int, outputs: int | None = None) -> float:
    """All blocks of a ViT on `rows` tokens; the last one updates `outputs` of them (None = all)."""
    last = block_flops(vit, rows=rows if outputs is None else outputs, keys=rows)
    return (vit.depth - 1) * block_flops(vit, rows=rows, keys=rows) + last


def swin_flops(net: SwinConfig) -> float:
    """All blocks and mergings of a Swin; windows are counted with their padding, which is computed."""
    total = 0.0
    for plan, stage in zip(net.plans, net.stage_of, strict=True):
        width, tokens = net.widths[stage], net.maps[stage][0] * net.maps[stage][1]
        window = plan.window[0] * plan.window[1]
        inside = plan.count * window
        total += (
            dense_flops(inside, width, 4 * width)  # q, k, v and the output projection
            + 2 * dense_flops(1, inside * window, width)
            + 2 * dense_flops(tokens, width, int(width * net.mlp_ratio))
        )
    for stage, (rows, columns) in enumerate(net.maps[1:]):
        total += dense_flops(rows * columns, 4 * net.widths[stage], 2 * net.widths[stage])
    return total


def encoder_decoder_flops(
    vit: ViTConfig, decoder: DecoderConfig, *, visible: int, hidden: int, painted: int, channels: int = 3
) -> float:
    """An encoder on `visible` patches, a decoder on these and `hidden` ones, of which `painted` are predicted."""
    encoded = vit.prefix + visible
    return (
        dense_flops(visible, channels * vit.patch**2, vit.width, first=True)
        + plain_flops(vit, encoded)
        + dense_flops(encoded, vit.width, decoder.width)
        + plain_flops(decoder.transformer(vit), encoded + hidden, painted)
        + dense_flops(painted, decoder.width, 3 * vit.patch**2)
    )


def two_stream_flops(vit: ViTConfig, layout: TwoStreams) -> float:
    """All blocks under two-stream attention; the last one updates the query rows only."""
    keys, queries = layout.keys, layout.targets
    whole, last = (
        sum(b.area for b in layout.mask_blocks),
        sum(b.area for b in last_queries(layout.mask_blocks, queries)),
    )
    block = block_flops(vit, rows=keys + queries, keys=keys, area=whole)
    return (vit.depth - 1) * block + block_flops(vit, rows=queries, keys=keys, area=last)
