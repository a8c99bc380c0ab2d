"""Mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899) and Random Erasing (arXiv 1708.04896), by timm's rules.

Mixing is of whole batches, with one draw a batch: example i takes from example B - 1 - i, so targets must be
distributions over classes (`one_hot`). Erasing is of one image (vmap for a batch). Boxes are (y0, y1, x0, x1), int32
scalars in pixels, the ends excluded.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32, Key

Box = tuple[Int32[Array, ""], Int32[Array, ""], Int32[Array, ""], Int32[Array, ""]]


def one_hot(
    labels: Int[Array, "*batch"], num_classes: int, smoothing: float
) -> Float32[Array, "*batch {num_classes}"]:
    """Label smoothing: smoothing / C for every class, and 1 - smoothing more for the right one.

    Args:
        labels: a negative one (no label) gives zeros.
        smoothing: in [0, 1].
    Returns:
        rows sum to 1.
    """
    off = smoothing / num_classes
    hot = labels[..., None] == jnp.arange(num_classes)
    rows = jnp.where(hot, 1.0 - smoothing + off, off)
    return jnp.where(labels[..., None] >= 0, rows, 0.0).astype(jnp.float32)


# Mixing --------------------------------------------------------------------------------------------------------------


def mix(
    key: Key[Array, ""],
    images: Float[Array, "batch height width channels"],
    targets: Float[Array, "batch classes"],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: Float[Array, ""] | float = 1.0,
    switch: Float[Array, ""] | float = 0.5,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """Mixup or CutMix of a batch, one draw for all of it.

    Args:
        key: one per batch.
        mixup_alpha, cutmix_alpha: of each one's Beta(alpha, alpha); 0 turns it off. Static.
        probability: that the batch is mixed at all.
        switch: that it is CutMix, where both are on.
    Returns:
        images and targets, (for float32) dtypes kept.
    """
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return images, targets
    height, width = images.shape[1:3]
    mixed_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    mixed = jax.random.bernoulli(mixed_key, probability)

    def mixup_batch() -> tuple[jax.Array, jax.Array]:
        # lam = 1 is the identity of both.
        return mixup(images, targets, jnp.where(mixed, mixup_weights(mixup_key, mixup_alpha), 1.0))

    def cutmix_batch() -> tuple[jax.Array, jax.Array]:
        lam = jnp.where(mixed, mixup_weights(cutmix_key, cutmix_alpha), 1.0)
        return cutmix(images, targets, *cutmix_box(box_key, height, width, lam))

    if cutmix_alpha <= 0:
        return mixup_batch()
    if mixup_alpha <= 0:
        return cutmix_batch()
    use_cutmix = jax.random.bernoulli(switch_key, switch)
    # Both and a choice, no branch: XLA fuses them into one pass, and a batch split over devices needs no branch there.
    return jax.tree.map(lambda cut, blend: jnp.where(use_cutmix, cut, blend), cutmix_batch(), mixup_batch())


def mixup_weights(key: Key[Array, ""], alpha: Float[Array, ""] | float) -> Float[Array, ""]:
    """lam ~ Beta(alpha, alpha), in [0, 1]: the share an example keeps of itself."""
    return jax.random.beta(key, alpha, alpha)


def mixup(
    images: Float[Array, "batch height width channels"],
    targets: Float[Array, "batch classes"],
    lam: Float[Array, ""] | Float[Array, " batch"] | float,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """lam (one, or each example's own) times each example plus 1 - lam times its partner, example B - 1 - i."""

    def blend(own: jax.Array) -> jax.Array:
        weight = jnp.reshape(lam, (-1,) + (1,) * (own.ndim - 1))
        return weight * own + (1.0 - weight) * own[::-1]

    return blend(images), blend(targets)


def cutmix_box(
    key: Key[Array, ""], height: int, width: int, lam: Float[Array, ""] | float
) -> tuple[Box, Float[Array, ""]]:
    """A box of about 1 - lam of the image, its centre uniform over the pixels; parts beyond the border are cut off.

    Args:
        key: one per batch.
        height, width: of the images, pixels.
        lam: in [0, 1].
    Returns:
        the box, and lam corrected to the share of the image outside it.
    """
    centre = jax.random.randint(key, (2,), 0, jnp.asarray([height, width]), jnp.int32)
    return cutmix_box_at(centre, height, width, lam)


def cutmix_box_at(
    centre: Int32[Array, "2"], height: int, width: int, lam: Float[Array, ""] | float
) -> tuple[Box, Float[Array, ""]]:
    """The explicit entry of `cutmix_box`: `centre` is (y, x).

    The sides are floor(side * sqrt(1 - lam)) in float32, and odd ones lose a pixel to the halving, as in timm.
    """
    ratio = jnp.sqrt(1.0 - jnp.asarray(lam, jnp.float32))

    def ends(middle: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
        half = jnp.floor(side * ratio).astype(jnp.int32) // 2
        return jnp.clip(middle - half, 0, side), jnp.clip(middle + half, 0, side)

    (y0, y1), (x0, x1) = ends(centre[0], height), ends(centre[1], width)
    return (y0, y1, x0, x1), 1.0 - (y1 - y0) * (x1 - x0) / (height * width)


def cutmix(
    images: Float[Array, "batch height width channels"],
    targets: Float[Array, "batch classes"],
    box: Box,
    lam: Float[Array, ""] | float,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """The partner's pixels inside the box, and 1 - lam of its targets (partners as `mixup`).

    Args:
        box: one for the batch.
        lam: the share of the image outside the box (`cutmix_box` returns it).
    """
    inside = _inside(box, *images.shape[1:3])[..., None]
    return jnp.where(inside, images[::-1], images), lam * targets + (1.0 - lam) * targets[::-1]


def _inside(box: Box, height: int, width: int) -> jax.Array:
    """bool [H, W]: the pixels of the box. A mask and no slice: shapes stay static."""
    y0, y1, x0, x1 = box
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


# Erasing -------------------------------------------------------------------------------------------------------------


def random_erasing(
    key: Key[Array, ""],
    image: Float[Array, "height width channels"],
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: float = 0.3,
    tries: int = 10,
) -> Float[Array, "height width channels"]:
    """One rectangle of the image replaced by N(0, 1) noise (timm's mode `pixel`, count 1).

    Args:
        key: one per image (vmap for a batch).
        image: normalised: the noise then has the mean and deviation of images.
        probability: that the image is erased.
        area, aspect: as `erasing_box`.
        tries: boxes drawn; the first that fits is taken, and if none does the image stays.
    """
    applied_key, box_key, noise_key = jax.random.split(key, 3)
    draws = jax.random.uniform(box_key, (tries, 4))
    box = erasing_box(draws, *image.shape[:2], area=area, aspect=aspect)
    erased = erase(image, box, jax.random.normal(noise_key, image.shape, image.dtype))
    return jnp.where(jax.random.bernoulli(applied_key, probability), erased, image)


def erasing_box(
    draws: Float[Array, "tries 4"], height: int, width: int, *, area: tuple[float, float], aspect: float
) -> Box:
    """The first drawn box that is smaller than the image on both axes; an empty one where none is.

    Args:
        draws: in [0, 1): area, aspect ratio, top, left of every tried box.
        height, width: of the image, pixels.
        area: smallest and largest share of the image, uniform in between.
        aspect: smaller bound of height / width, which is log-uniform in [aspect, 1 / aspect].
    """
    target = (area[0] + draws[:, 0] * (area[1] - area[0])) * (height * width)
    ratio = jnp.exp(math.log(aspect) * (1.0 - 2.0 * draws[:, 1]))
    rows = jnp.round(jnp.sqrt(target * ratio)).astype(jnp.int32)
    columns = jnp.round(jnp.sqrt(target / ratio)).astype(jnp.int32)
    top = jnp.floor(draws[:, 2] * (height - rows + 1)).astype(jnp.int32)
    left = jnp.floor(draws[:, 3] * (width - columns + 1)).astype(jnp.int32)
    fits = (rows < height) & (columns < width)
    first = jnp.argmax(fits)
    ends = (top, top + rows, left, left + columns)
    y0, y1, x0, x1 = (jnp.where(jnp.any(fits), end[first], 0) for end in ends)
    return y0, y1, x0, x1


def erase(
    image: Float[Array, "height width channels"], box: Box, noise: Float[Array, "height width channels"]
) -> Float[Array, "height width channels"]:
    """The explicit entry of `random_erasing`: `noise` inside the box, the image outside."""
    return jnp.where(_inside(box, *image.shape[:2])[..., None], noise, image)
