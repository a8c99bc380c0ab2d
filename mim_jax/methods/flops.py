"""Model FLOPs of one example's forward and backward pass: matrix products only, 2 a multiply-add, no recomputation.

A product costs its forward twice more in the backward pass (the gradients of its input and of its kernel), except a
first layer, whose input needs no gradient. What is left out (norms, softmax, GELU, the optimiser) is 1 to 2 % of a
ViT-S; tests hold the sum to XLA's own count.
"""

from mim_jax.models.vit import ViTConfig


def dense_flops(rows: int, inputs: int, outputs: int, *, first: bool = False) -> float:
    """A linear layer on `rows` rows; `first` = no gradient with respect to its input."""
    return 2.0 * rows * inputs * outputs * (2 if first else 3)


def block_flops(vit: ViTConfig, *, rows: int, keys: int, queries: int | None = None) -> float:
    """One block of `rows` rows, of which the first `keys` are keys and the last `queries` (None = all) are updated."""
    queries = rows if queries is None else queries
    width, hidden = vit.width, int(vit.width * vit.mlp_ratio)
    return (
        dense_flops(queries, width, width)  # q
        + dense_flops(keys, width, 2 * width)  # k, v
        + 2 * dense_flops(queries, keys, width)  # q k^T and its product with v, over all heads
        + dense_flops(queries, width, width)  # output projection
        + 2 * dense_flops(queries, width, hidden)
    )


def blocks_flops(vit: ViTConfig, *, rows: int, keys: int, outputs: int | None = None) -> float:
    """All blocks; the last one updates `outputs` rows only (None = all)."""
    whole = block_flops(vit, rows=rows, keys=keys)
    return (vit.depth - 1) * whole + block_flops(vit, rows=rows, keys=keys, queries=outputs)
