"""Which patches are hidden: uniformly random, SimMIM's units of patches, and BEiT's block-wise rule with static shapes.

Every op comes twice: with a key (one per example; vmap for a batch) and explicit (given noise or given draws), so that
it can be compared with any reference. Masks are boolean, True = hidden. Counts are Python ints: shapes stay static.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Key


def num_kept(num_patches: int, ratio: float) -> int:
    """Patches that stay visible at a masking ratio: int(L * (1 - ratio)), truncated as MAE does (docs/papers/amt.md 1.2)."""
    return int(num_patches * (1.0 - ratio))


def random_mask(key: Key[Array, ""], num_patches: int, num_masked: int) -> Bool[Array, " {num_patches}"]:
    """Hides exactly `num_masked` patches, uniformly."""
    return mask_from_noise(jax.random.uniform(key, (num_patches,)), num_masked)


def mask_from_noise(noise: Float[Array, "*batch patches"], num_masked: int) -> Bool[Array, "*batch patches"]:
    """The explicit entry: hides the `num_masked` patches of largest noise (small noise = kept)."""
    length = noise.shape[-1]
    if not 0 <= num_masked <= length:
        raise ValueError(f"num_masked must lie in 0..{length} (the number of patches), got {num_masked}")
    place = jnp.argsort(jnp.argsort(noise, axis=-1, stable=True), axis=-1)
    return place >= length - num_masked


def random_split(
    key: Key[Array, ""], num_patches: int, num_visible: int
) -> tuple[Int32[Array, " {num_visible}"], Int32[Array, " hidden"]]:
    """Indices of the visible and of the hidden patches of one image, uniformly."""
    return split_by_noise(jax.random.uniform(key, (num_patches,)), num_visible)


def split_by_noise(
    noise: Float[Array, "*batch patches"], num_visible: int
) -> tuple[Int32[Array, "*batch {num_visible}"], Int32[Array, "*batch hidden"]]:
    """The explicit entry, MAE's rule: the `num_visible` patches of smallest noise are visible, in order of noise."""
    order = jnp.argsort(noise, axis=-1, stable=True).astype(jnp.int32)
    return order[..., :num_visible], order[..., num_visible:]


def masked_first(
    mask: Bool[Array, "*batch patches"], num_masked: int
) -> tuple[Int32[Array, "*batch {num_masked}"], Int32[Array, "*batch visible"]]:
    """Indices of hidden and of visible patches, each in raster order, from a mask with `num_masked` True per row."""
    by_mask = jnp.argsort(~mask, axis=-1, stable=True).astype(jnp.int32)
    return by_mask[..., :num_masked], by_mask[..., num_masked:]


def num_units_masked(grid: tuple[int, int], unit: int, ratio: float) -> int:
    """Hidden units at a masking ratio: ceil(ratio * units) in double arithmetic, as SimMIM does (docs/papers/amt.md 2.1).

    Args:
        grid: rows and columns of patches.
        unit: side of a unit, in patches.
        ratio: in [0, 1].
    Raises:
        ValueError: if the grid is not a multiple of the unit, or the ratio is outside [0, 1].
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}")
    rows, columns = unit_grid(grid, unit)
    return math.ceil(ratio * (rows * columns))


def unit_mask(
    key: Key[Array, ""], grid: tuple[int, int], unit: int, ratio: float
) -> Bool[Array, " {grid[0]*grid[1]}"]:
    """SimMIM's mask (docs/papers/amt.md 2.1): whole units of `unit` x `unit` patches, uniformly chosen, exactly counted.

    Args:
        key: one per example (vmap for a batch).
        grid: rows and columns of patches.
        unit: side of a unit, in patches (32 px are 2 at p = 16).
        ratio: share of the units; the count is `num_units_masked`.
    Returns:
        in raster order.
    Raises:
        ValueError: as `num_units_masked`.
    """
    rows, columns = unit_grid(grid, unit)
    noise = jax.random.uniform(key, (rows * columns,))
    return unit_mask_from_noise(noise, grid, unit, num_units_masked(grid, unit, ratio))


def unit_mask_from_noise(
    noise: Float[Array, "*batch units"], grid: tuple[int, int], unit: int, num_masked: int
) -> Bool[Array, "*batch {grid[0]*grid[1]}"]:
    """The explicit entry: hides the `num_masked` units of largest noise.

    Args:
        noise: of the units in raster order.
        grid, unit: as `unit_mask`.
        num_masked: in units.
    Raises:
        ValueError: if the grid is not a multiple of the unit, or `noise` or `num_masked` do not fit it.
    """
    rows, columns = unit_grid(grid, unit)
    if noise.shape[-1] != rows * columns:
        raise ValueError(
            f"noise must hold {rows * columns} units ({rows} x {columns}), got {noise.shape[-1]}"
        )
    units = mask_from_noise(noise, num_masked).reshape(*noise.shape[:-1], rows, 1, columns, 1)
    patches = jnp.broadcast_to(units, (*noise.shape[:-1], rows, unit, columns, unit))
    return patches.reshape(*noise.shape[:-1], grid[0] * grid[1])


def unit_grid(grid: tuple[int, int], unit: int) -> tuple[int, int]:
    """Rows and columns of units of `unit` x `unit` patches. ValueError where they do not fill the grid."""
    if unit < 1 or grid[0] % unit or grid[1] % unit:
        raise ValueError(
            f"a grid of {grid[0]}x{grid[1]} patches cannot be cut into units of {unit}x{unit} patches"
        )
    return grid[0] // unit, grid[1] // unit


def block_mask(
    key: Key[Array, ""],
    grid: tuple[int, int],
    num_masked: int,
    *,
    min_block: int = 16,
    max_block: int | None = None,
    aspect: float = 0.3,
    rounds: int = 64,
    tries: int = 10,
) -> Bool[Array, " {grid[0]*grid[1]}"]:
    """BEiT's block-wise mask (docs/papers/mapet.md 6), with exactly `num_masked` hidden patches.

    Rectangles are added until the goal is reached: area uniform between `min_block` and what is still allowed (the
    interval may be reversed, as in BEiT), aspect ratio log-uniform in [aspect, 1 / aspect]; a rectangle is taken when
    it is smaller than the grid and adds between 1 and the allowed number of new patches; ten failures in a row end it.
    BEiT then goes on with too few (75 wanted: exactly 75 in 68 % of the draws). We **top up** with uniformly random
    patches, because shapes are static: 0.5 patches of 75 on average.

    Args:
        key: one per example.
        grid: rows and columns of patches.
        num_masked: the goal, reached exactly.
        min_block: smallest area drawn, in patches.
        max_block: largest number of new patches a rectangle may add; None for no limit.
        aspect: smaller bound of height / width.
        rounds: at most so many rectangles (each adds at least one patch; 64 is never the limit in practice).
        tries: draws for one rectangle.
    """
    if not 0 <= num_masked <= grid[0] * grid[1]:
        raise ValueError(
            f"num_masked must lie in 0..{grid[0] * grid[1]} (the number of patches), got {num_masked}"
        )
    draw_key, fill_key = jax.random.split(key)
    draws = jax.random.uniform(draw_key, (rounds, tries, 4))
    blocks = blocks_from_draws(
        draws, grid, num_masked, min_block=min_block, max_block=max_block, aspect=aspect
    )
    return top_up(blocks, jax.random.uniform(fill_key, (grid[0] * grid[1],)), num_masked)


def top_up(
    mask: Bool[Array, "*batch patches"], noise: Float[Array, "*batch patches"], num_masked: int
) -> Bool[Array, "*batch patches"]:
    """Adds the visible patches of largest noise (in [0, 1)) until `num_masked` are hidden."""
    return mask_from_noise(jnp.where(mask, 1.0 + noise, noise), num_masked)


def blocks_from_draws(
    draws: Float[Array, "rounds tries 4"],
    grid: tuple[int, int],
    num_masked: int,
    *,
    min_block: int = 16,
    max_block: int | None = None,
    aspect: float = 0.3,
) -> Bool[Array, " {grid[0]*grid[1]}"]:
    """The explicit entry of `block_mask` before the top-up.

    Args:
        draws: in [0, 1): area, aspect ratio, top, left of every tried rectangle.
    Returns:
        at most `num_masked` True.
    """
    rows, columns = grid
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)[None, :]
    ceiling = num_masked if max_block is None else max_block
    log_low, log_high = math.log(aspect), math.log(1.0 / aspect)

    def attempt(mask: jax.Array, draw: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
        area = min_block + draw[0] * (allowed - min_block)
        ratio = jnp.exp(log_low + draw[1] * (log_high - log_low))
        height = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
        width = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
        top = jnp.floor(draw[2] * (rows - height + 1)).astype(jnp.int32)
        left = jnp.floor(draw[3] * (columns - width + 1)).astype(jnp.int32)
        inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        new = jnp.sum(inside & ~mask)
        fits = (height < rows) & (width < columns) & (new >= 1) & (new <= allowed)
        return inside, fits

    def one_round(
        carry: tuple[jax.Array, jax.Array], tried: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        mask, going = carry
        allowed = jnp.minimum(num_masked - jnp.sum(mask), ceiling)
        inside, fits = jax.vmap(lambda d: attempt(mask, d, allowed))(tried)
        found = jnp.any(fits) & going & (allowed > 0)
        block = inside[jnp.argmax(fits)]  # the first try that fits
        return (jnp.where(found, mask | block, mask), going & found), None

    start = (jnp.zeros(grid, bool), jnp.asarray(True))
    (mask, _), _ = jax.lax.scan(one_round, start, draws)
    return mask.reshape(-1)
