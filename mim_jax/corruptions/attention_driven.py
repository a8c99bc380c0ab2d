"""AMT's masking and throwing (docs/papers/amt.md 3 to 6): an attention map decides which patches are hidden, which are
thrown away, and which the network sees.

The map may come from anywhere (a network's attention, a saliency detector, a segmentation): the ops take non-negative
weights. Every op comes with a key (one per example; vmap for a batch) or explicit, as in `masking.py`.

    weights = crop_map(attention, box, flip, (14, 14))
    masked, thrown, visible = partition(scores_from_weights(key, weights), num_masked=88, num_thrown=78)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Int32, Key

from .masking import unit_grid

NEVER = -1e9
"""Score of a patch of weight zero, before its noise: behind every patch that has any weight."""


def num_masked_and_thrown(num_patches: int, mask_ratio: float, throw_ratio: float) -> tuple[int, int]:
    """(M, T) as AMT counts (docs/papers/amt.md 4): int(L m), and int(L (m + t)) minus that; K = L - M - T stay visible.

    Raises:
        ValueError: if a ratio is negative, no patch is masked, or none stays visible.
    """
    if mask_ratio < 0 or throw_ratio < 0:
        raise ValueError(f"ratios must not be negative, got {mask_ratio} and {throw_ratio}")
    masked, gone = int(num_patches * mask_ratio), int(num_patches * (mask_ratio + throw_ratio))
    if masked < 1 or gone >= num_patches:
        raise ValueError(
            f"ratios {mask_ratio} and {throw_ratio} mask {masked} of {num_patches} patches and leave"
            f" {num_patches - gone} visible: at least one of each is needed"
        )
    return masked, gone - masked


def partition(
    scores: Float[Array, "*batch patches"], num_masked: int, num_thrown: int
) -> tuple[
    Int32[Array, "*batch {num_masked}"], Int32[Array, "*batch {num_thrown}"], Int32[Array, "*batch visible"]
]:
    """Indices of the masked, the thrown and the visible, by descending score; ties go by index.

    Args:
        scores: at least float32 (bfloat16 has ties).
        num_masked: the first of the order. num_thrown: the next ones.
    Raises:
        ValueError: if the counts do not fit.
    """
    length = scores.shape[-1]
    if num_masked < 0 or num_thrown < 0 or num_masked + num_thrown > length:
        raise ValueError(f"{num_masked} masked and {num_thrown} thrown do not fit {length} patches")
    return split_order(jnp.argsort(-scores, axis=-1, stable=True), num_masked, num_thrown)


def split_order(
    order: Int[Array, "*batch patches"], num_masked: int, num_thrown: int
) -> tuple[
    Int32[Array, "*batch {num_masked}"], Int32[Array, "*batch {num_thrown}"], Int32[Array, "*batch visible"]
]:
    """The explicit entry of `partition`: `order` is a permutation, most masked first."""
    order, end = order.astype(jnp.int32), num_masked + num_thrown
    return order[..., :num_masked], order[..., num_masked:end], order[..., end:]


def scores_from_weights(key: Key[Array, ""], weights: Float[Array, " patches"]) -> Float[Array, " patches"]:
    """Scores whose descending order is a random permutation drawn in proportion to the weights, without replacement.

    Args:
        key: one per example.
        weights: non-negative; only ratios count.
    Returns:
        float32 at least: log w + Gumbel noise (docs/papers/amt.md 9.1).
    """
    wide = jnp.promote_types(weights.dtype, jnp.float32)
    return scores_from_noise(jax.random.gumbel(key, weights.shape, wide), weights)


def scores_from_noise(
    noise: Float[Array, "*batch patches"], weights: Float[Array, "*batch patches"]
) -> Float[Array, "*batch patches"]:
    """The explicit entry: Gumbel noise, or -log of the exponential noise of `torch.multinomial`."""
    some = weights > 0
    return noise + jnp.where(some, jnp.log(jnp.where(some, weights, 1.0)), NEVER)


def normalise_attention(attention: Float[Array, "*batch heads patches"]) -> Float[Array, "*batch patches"]:
    """AMT's map (docs/papers/amt.md 3.1): every head's weights to [0, 1] by their minimum and maximum, then the mean of the heads.

    Args:
        attention: weights of one query to the patches (CLS left out).
    Returns:
        in [0, 1]; a head that is constant counts 0 everywhere.
    """
    low, high = attention.min(axis=-1, keepdims=True), attention.max(axis=-1, keepdims=True)
    return jnp.mean((attention - low) / jnp.maximum(high - low, 1e-12), axis=-2)


def crop_map(
    attention: Float[Array, "rows columns"],
    box: Float[Array, "4"],
    flip: Bool[Array, ""],
    grid: tuple[int, int],
) -> Float[Array, " {grid[0]*grid[1]}"]:
    """A whole image's map as the crop of that image sees it: bilinear, aligned with the pixels (docs/papers/amt.md 6).

    The official code cuts the map's upper left corner instead, whatever the crop (`official_corner`).

    Args:
        attention: over the whole image.
        box: y0, x0, height, width of the crop, relative to the image.
        flip: the crop is mirrored left-right.
        grid: rows and columns of patches of the crop.
    Returns:
        in raster order; the whole image unflipped on its own grid is returned as it is.
    """
    vertical = _linear(box[0], box[2], attention.shape[0], grid[0])
    horizontal = _linear(box[1], box[3], attention.shape[1], grid[1])
    horizontal = jnp.where(flip, horizontal[::-1], horizontal)
    return _both_ways(vertical, attention, horizontal)


def _linear(start: jax.Array, size: jax.Array, cells: int, places: int) -> jax.Array:
    """Bilinear weights [places, cells] of a stretch from `start`; beyond the outer cells' centres, the outer cell."""
    at = (
        start * cells + (jnp.arange(places) + 0.5) * (size * cells / places) - 0.5
    )  # exact for the whole image
    return jnp.maximum(0.0, 1.0 - jnp.abs(jnp.clip(at, 0.0, cells - 1.0)[:, None] - jnp.arange(cells)))


def _both_ways(vertical: jax.Array, attention: jax.Array, horizontal: jax.Array) -> jax.Array:
    """The map resampled along both axes, flat; never in reduced precision."""
    product = jnp.einsum("rs,st,ct->rc", vertical, attention, horizontal, precision="highest")
    return product.reshape(-1)


def official_corner(
    attention: Float[Array, "rows columns"],
    box: Float[Array, "4"],
    flip: Bool[Array, ""],
    grid: tuple[int, int],
) -> Float[Array, " {grid[0]*grid[1]}"]:
    """What the official code makes of the crop (docs/papers/amt.md 8.1): the map's upper left 2 x 2 cells, whatever the box.

    A third row or column comes in where the crop touches the lower or right edge. Arguments and result as `crop_map`,
    up to a common factor.
    """
    vertical = _corner(box[0] + box[2], attention.shape[0], grid[0])
    horizontal = _corner(box[1] + box[3], attention.shape[1], grid[1])
    horizontal = jnp.where(flip, horizontal[::-1], horizontal)
    return _both_ways(vertical, attention, horizontal)


def _corner(end: jax.Array, cells: int, places: int) -> jax.Array:
    """[places, cells]: the first two cells, or three where the crop's `end` is 1, stretched over all places."""
    two, three = (
        np.pad(stretch(n, places), ((0, 0), (0, max(0, cells - n)))) for n in (min(2, cells), min(3, cells))
    )
    return jnp.where(end >= 1.0 - 1e-6, three, two)


def stretch(cells: int, places: int, samples: int = 16) -> Float64[np.ndarray, "{places} {cells}"]:
    """Bilinear resizing of `cells` to `places * samples` pixels and the mean over each place.

    With as many places as cells it is the filter [1/8, 3/4, 1/8] that the official resize-and-sum amounts to (at 16).
    """
    pixels = (np.arange(places * samples) + 0.5) / (places * samples)
    at = np.clip(pixels * cells - 0.5, 0.0, cells - 1.0)
    hat = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(cells)))
    return hat.reshape(places, samples, cells).mean(axis=1)


def unit_weights(
    weights: Float[Array, "*batch patches"], grid: tuple[int, int], unit: int
) -> Float[Array, "*batch patches//{unit}**2"]:
    """Sum of the weights of every unit of `unit` x `unit` patches, in raster order."""
    rows, columns = unit_grid(grid, unit)
    parts = weights.reshape(*weights.shape[:-1], rows, unit, columns, unit)
    return parts.sum(axis=(-3, -1)).reshape(*weights.shape[:-1], rows * columns)


def patches_of_units(
    units: Int[Array, "*batch units"], grid: tuple[int, int], unit: int
) -> Int32[Array, "*batch units*{unit}**2"]:
    """Indices of the patches in the units given."""
    _, columns = unit_grid(grid, unit)
    corner = (units // columns) * unit * grid[1] + (units % columns) * unit
    inside = (np.arange(unit)[:, None] * grid[1] + np.arange(unit)).reshape(-1)
    return (corner[..., None] + inside).reshape(*units.shape[:-1], -1).astype(jnp.int32)
