"""RandAugment with increasing severities, timm's `rand-m9-mstd0.5-inc1` (RandAugment, arXiv 1909.13719), per image.

The levels are Pillow's: an image is rounded to 0..255 first. The lookups then give the very levels of Pillow; the
enhancements and the warps, which it truncates after a blend, may be one level off (float32 factors and positions).

Under vmap a `lax.switch` computes all its branches, so ops that can share work do: eight are lookup tables (256
entries a channel, one lookup of the image), five are one affine warp. On a CPU `lax.map` is several times as
fast: it computes one branch only.

Two things differ from timm: warps are always bilinear (timm draws bilinear or bicubic for each), and magnitude 10
posterizes to black (0 bits), which Pillow now refuses.

    images = jax.vmap(lambda key, image: rand_augment(key, image, fill=mean))(keys, images)
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key

OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "ColorIncreasing",
    "SharpnessIncreasing",
    "Rotate",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
"""timm's increasing set, in our order: lookup tables up to Brightness, Color, Sharpness, warps from Rotate on."""

_LAST_TABLE, _FIRST_WARP = OPS.index("BrightnessIncreasing"), OPS.index("Rotate")
_LEVELS = np.arange(256, dtype=np.int32)

Fill = float | tuple[float, float, float] | Float[Array, ""] | Float[Array, "3"]
Draws = tuple[Int32[Array, "*ops"], Float[Array, "*ops"], Float32[Array, "*ops"], Bool[Array, "*ops"]]


def rand_augment(
    key: Key[Array, ""],
    image: Float[Array, "height width 3"],
    *,
    num_ops: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.5,
    probability: float = 0.5,
    fill: Fill = 0.5,
) -> Float32[Array, "height width 3"]:
    """`num_ops` ops in a row, each drawn uniformly from OPS (with replacement) and applied with `probability`.

    Args:
        key: one per image (vmap for a batch).
        image: in [0, 1].
        num_ops, magnitude, magnitude_std, probability: as `draw_ops`.
        fill: colour of what a warp brings in from outside, in [0, 1].
    Returns:
        in [0, 1], multiples of 1 / 255 also where no op was applied.
    """
    draws = draw_ops(
        key, num_ops=num_ops, magnitude=magnitude, magnitude_std=magnitude_std, probability=probability
    )
    return augment_with(image, draws, fill)


def draw_ops(
    key: Key[Array, ""], *, num_ops: int, magnitude: float, magnitude_std: float, probability: float
) -> Draws:
    """What `rand_augment` draws for one image.

    Args:
        key: one per image.
        num_ops: length of all four results, static.
        magnitude, magnitude_std: mean and deviation of the normal law of magnitudes, which are clipped to [0, 10].
        probability: of each op being applied.
    Returns:
        ops (indices into OPS), magnitudes, signs (-1 or 1) and whether each is applied.
    """
    op_key, magnitude_key, sign_key, applied_key = jax.random.split(key, 4)
    noise = jax.random.normal(magnitude_key, (num_ops,))
    return (
        jax.random.randint(op_key, (num_ops,), 0, len(OPS), jnp.int32),
        jnp.clip(magnitude + magnitude_std * noise, 0.0, 10.0),
        jax.random.rademacher(sign_key, (num_ops,), jnp.float32),
        jax.random.bernoulli(applied_key, probability, (num_ops,)),
    )


def augment_with(
    image: Float[Array, "height width 3"], draws: Draws, fill: Fill = 0.5
) -> Float32[Array, "height width 3"]:
    """The explicit entry of `rand_augment`: the ops of `draws` (as `draw_ops` returns them) one after the other."""
    fill = _levels(jnp.asarray(fill))

    def one_op(levels: jax.Array, draw: Draws) -> tuple[jax.Array, None]:
        op, magnitude, sign, applied = draw
        return jnp.where(applied, _apply(levels, op, magnitude, sign, fill), levels), None

    # A scan, not a Python loop: the ops are compiled once.
    levels, _ = jax.lax.scan(one_op, _levels(image), draws)
    return _values(levels)


def apply_op(
    image: Float[Array, "height width 3"],
    op: Int[Array, ""] | int,
    magnitude: Float[Array, ""] | float,
    sign: Float[Array, ""] | float,
    fill: Fill = 0.5,
) -> Float32[Array, "height width 3"]:
    """One op, given all that is drawn.

    Args:
        image: in [0, 1], at most 4 million pixels (the sum of their grey levels is an int32).
        op: index into OPS. Not checked: it is traced.
        magnitude: in [0, 10]. Ignored by AutoContrast, Equalize and Invert.
        sign: -1 or 1: the way of a warp, less or more of an enhancement; ignored by the other ops.
        fill: as `rand_augment`.
    Returns:
        in [0, 1], multiples of 1 / 255.
    """
    return _values(_apply(_levels(image), op, magnitude, sign, _levels(jnp.asarray(fill))))


def _levels(values: jax.Array) -> jax.Array:
    """[0, 1] to uint8 levels."""
    return jnp.clip(jnp.round(255.0 * values), 0, 255).astype(jnp.uint8)


def _values(levels: jax.Array) -> jax.Array:
    return levels.astype(jnp.float32) / 255.0


def _apply(
    levels: jax.Array,
    op: jax.Array | int,
    magnitude: jax.Array | float,
    sign: jax.Array | float,
    fill: jax.Array,
) -> jax.Array:
    """`apply_op` from levels to levels, uint8."""
    op, share = jnp.asarray(op, jnp.int32), jnp.asarray(magnitude, jnp.float32) / 10.0
    factor = jnp.maximum(0.1, 1.0 + sign * share * 0.9)
    kinds = (
        lambda: _look_up(levels, _table(levels, op, share, factor)),
        lambda: _blend(_grey(levels)[..., None], levels, factor),
        lambda: _blend(_smooth(levels), levels, factor),
        lambda: _warp(levels, _shift_matrix(op, sign * share, *levels.shape[:2]), fill),
    )
    return jax.lax.switch(op - _LAST_TABLE, kinds)  # switch clamps: all tables are kind 0, all warps kind 3


# Lookup tables -------------------------------------------------------------------------------------------------------


def _look_up(levels: jax.Array, table: jax.Array) -> jax.Array:
    place = levels.astype(jnp.int32) + 256 * jnp.arange(3, dtype=jnp.int32)
    return jnp.take(table.reshape(-1), place, mode="clip")


def _table(levels: jax.Array, op: jax.Array, share: jax.Array, factor: jax.Array) -> jax.Array:
    """The table of an op up to Brightness, uint8 [3, 256]."""
    bits_gone = 4 + jnp.floor(share * 4).astype(jnp.int32)
    threshold = 256 - jnp.floor(share * 256).astype(jnp.int32)
    added = jnp.floor(share * 110).astype(jnp.int32)  # at most 110: the dark half stays below 256
    tables = (
        _autocontrast_table(levels),
        _equalize_table(levels),
        255 - _LEVELS,
        _LEVELS >> bits_gone << bits_gone,
        jnp.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS),
        jnp.where(_LEVELS < 128, _LEVELS + added, _LEVELS),
        _blend(_mean_grey(levels), _LEVELS, factor),
        _blend(0, _LEVELS, factor),
    )
    # Stacked, not switched: XLA (CPU) fuses a switch into the lookup and makes every table anew for each pixel.
    stack = jnp.stack([jnp.broadcast_to(table, (3, 256)).astype(jnp.uint8) for table in tables])
    return jnp.take(stack, op, axis=0, mode="clip")


def _autocontrast_table(levels: jax.Array) -> jax.Array:
    """Each channel stretched to 0..255; a channel of one level stays."""
    low, high = (f(levels, axis=(0, 1)).astype(jnp.int32)[:, None] for f in (jnp.min, jnp.max))
    stretched = jnp.clip((_LEVELS - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    known, case = jnp.asarray(_autocontrast_shortfalls()), (low * 256 + high) * 256 + _LEVELS
    place = jnp.searchsorted(known, case, method="scan_unrolled")
    short = jnp.take(known, place, mode="clip") == case
    return jnp.where(high > low, stretched - short, _LEVELS)


@lru_cache(maxsize=1)
def _autocontrast_shortfalls() -> np.ndarray:
    """Where Pillow's autocontrast is one level below the exact stretch: int32 [12094], ascending.

    Pillow truncates level * scale + offset in double precision, which falls just below some whole numbers. There are no
    doubles on the device, but only whole results can fall, and these few can be tried here. An entry is
    (lowest level * 256 + highest level) * 256 + level.
    """
    span, above = np.mgrid[1:256, :256]
    whole = (above <= span) & (255 * above % span == 0)
    low, (span, above) = np.arange(256)[:, None], (span[whole], above[whole])
    scale = 255.0 / span
    short = np.trunc((low + above) * scale + -low * scale) < 255 * above // span
    low, place = np.nonzero(short & (low + span < 256))
    return np.sort((low * 256 + low + span[place]) * 256 + low + above[place]).astype(np.int32)


def _equalize_table(levels: jax.Array) -> jax.Array:
    """Each channel's cumulative histogram, in Pillow's integer arithmetic; a channel of too few levels stays."""
    channel = jnp.arange(3, dtype=jnp.int32)
    counts = jnp.bincount((256 * channel + levels).reshape(-1), length=3 * 256).reshape(3, 256)
    of_highest = counts[channel, jnp.max(levels, axis=(0, 1))][:, None]
    step = (levels.shape[0] * levels.shape[1] - of_highest) // 255
    below = jnp.cumsum(counts, axis=-1) - counts
    equalized = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equalized, _LEVELS)


# Enhancements --------------------------------------------------------------------------------------------------------


def _blend(plain: jax.Array | int, levels: jax.Array | np.ndarray, factor: jax.Array) -> jax.Array:
    """Pillow's blend, truncated and clipped to uint8: factor 0 is `plain`, 1 the levels, more goes beyond them."""
    start = jnp.asarray(plain, jnp.float32)
    return jnp.clip(start + factor * (levels - start), 0.0, 255.0).astype(jnp.uint8)


def _grey(levels: jax.Array) -> jax.Array:
    """Pillow's grey (ITU-R 601 in 16 bits of fixed point), int32 [H, W]."""
    red, green, blue = jnp.moveaxis(levels.astype(jnp.int32), -1, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _mean_grey(levels: jax.Array) -> jax.Array:
    """The mean of `_grey`, rounded half up; in integers, so that it is exact."""
    pixels = levels.shape[0] * levels.shape[1]
    return (2 * jnp.sum(_grey(levels)) + pixels) // (2 * pixels)


def _smooth(levels: jax.Array) -> jax.Array:
    """Pillow's SMOOTH filter: ones around a five, over 13, rounded; the border stays. int32 [H, W, 3]."""
    wide = levels.astype(jnp.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return wide.at[1:-1, 1:-1].set((2 * (box + 4 * wide[1:-1, 1:-1]) + 13) // 26)


# The warp ------------------------------------------------------------------------------------------------------------


def _shift_matrix(op: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """How far from its own place (x, y, 1) each output pixel looks, in pixels; float32 [2, 3]. `share` has the sign."""
    zero = jnp.zeros_like(share)

    def rotate() -> list[jax.Array]:
        angle = jnp.deg2rad(30.0 * share)  # positive is counterclockwise, about the image's centre
        less, sine = jnp.cos(angle) - 1.0, jnp.sin(angle)
        middle_x, middle_y = width / 2, height / 2
        return [
            less,
            -sine,
            sine * middle_y - less * middle_x,
            sine,
            less,
            -sine * middle_x - less * middle_y,
        ]

    matrices = (
        rotate,
        lambda: [zero, 0.3 * share, zero, zero, zero, zero],
        lambda: [zero, zero, zero, 0.3 * share, zero, zero],
        lambda: [zero, zero, 0.45 * share * width, zero, zero, zero],
        lambda: [zero, zero, zero, zero, zero, 0.45 * share * height],
    )
    return jnp.stack(jax.lax.switch(op - _FIRST_WARP, matrices)).reshape(2, 3)


def _warp(levels: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    """Bilinear, as Pillow's transform(AFFINE): outside is `fill`, the outer half pixel repeats the border.

    Positions are float32 (Pillow: double), so a level may be one off where Pillow truncates; a pixel that looks exactly
    at the image's rim may take the fill in one and the border in the other.
    """
    height, width, channels = levels.shape
    y, x = jnp.mgrid[:height, :width]
    # Elementwise, not a matrix product, which a GPU would compute in TF32; from the pixel's own place, for precision.
    shift_x, shift_y = (row[0] * (x + 0.5) + row[1] * (y + 0.5) + row[2] for row in matrix)
    from_x, from_y = x + shift_x, y + shift_y
    inside = (from_x >= -0.5) & (from_x < width - 0.5) & (from_y >= -0.5) & (from_y < height - 0.5)
    left, upper = jnp.floor(from_x), jnp.floor(from_y)
    right_share, lower_share = (from_x - left)[..., None], (from_y - upper)[..., None]
    left, upper = left.astype(jnp.int32), upper.astype(jnp.int32)
    pixels = levels.reshape(height * width, channels)

    def at(y: jax.Array, x: jax.Array) -> jax.Array:
        place = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
        return jnp.take(pixels, place, axis=0, mode="clip").astype(jnp.float32)

    def between(one: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
        return one + share * (other - one)  # exact between equals: truncation must not lower a flat area

    above = between(at(upper, left), at(upper, left + 1), right_share)
    below = between(at(upper + 1, left), at(upper + 1, left + 1), right_share)
    warped = between(above, below, lower_share).astype(jnp.uint8)
    return jnp.where(inside[..., None], warped, fill)
