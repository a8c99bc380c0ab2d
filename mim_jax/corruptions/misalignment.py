"""Spatial misalignment: zoom in, zoom out, fish-eye, and the area resize they are scored with (Beyond Masking, arXiv 2203.14313).

What the encoder sees lies elsewhere than what the decoder must paint; no coordinates are given to the network. Paper:
docs/papers/beyond_masking.md A3.3, A4 (a, b, c). Every random op comes as a draw (with a key, one per image) and as a pure function
of what was drawn. Ops are linear in the image, so values may be raw or normalised; they compute in float32 or wider
(`promote_types(dtype, float32)`), gathers keep the dtype. Sides are Python ints: shapes stay static.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, Int32, Key, Real

STRENGTH = (0.15, 0.25)
"""Range of the fish-eye strength k (docs/papers/beyond_masking.md A4 c)."""


@lru_cache(maxsize=64)
def area_matrix(size_in: int, size_out: int) -> Float64[np.ndarray, "{size_out} {size_in}"]:
    """The matrix of torch's interpolate(mode="area") along one axis (docs/papers/beyond_masking.md A3.3), for up- and down-sampling.

    Row r is the unweighted mean over the inputs floor(r i / o) .. ceil((r + 1) i / o) - 1, in integer arithmetic.

    Args:
        size_in, size_out: i and o, pixels, at least 1.
    Returns:
        read-only (it is cached); rows sum to 1.
    Raises:
        ValueError: for a size below 1.
    """
    if size_in < 1 or size_out < 1:
        raise ValueError(f"sizes must be at least 1 px, got {size_in} and {size_out}")
    rows = np.arange(size_out)[:, None]
    start, stop = rows * size_in // size_out, -(-(rows + 1) * size_in // size_out)
    column = np.arange(size_in)[None, :]
    matrix = ((column >= start) & (column < stop)) / (stop - start)
    matrix.flags.writeable = False
    return matrix


def area_resize(
    images: Real[Array, "*batch height width channels"], size: tuple[int, int]
) -> Float[Array, "*batch {size[0]} {size[1]} channels"]:
    """Area resize (adaptive average pooling) of whole batches by one matrix product per axis.

    Args:
        size: rows and columns wanted, pixels.
    Returns:
        in float32 or wider.
    """
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    images = images.astype(dtype)
    # HIGHEST: TF32 or bf16 products would cost three digits of target and of prediction.
    if size[0] != images.shape[-3]:
        down = jnp.asarray(area_matrix(images.shape[-3], size[0]), dtype)
        images = jnp.einsum("oh,...hwc->...owc", down, images, precision=jax.lax.Precision.HIGHEST)
    if size[1] != images.shape[-2]:
        across = jnp.asarray(area_matrix(images.shape[-2], size[1]), dtype)
        images = jnp.einsum("ow,...hwc->...hoc", across, images, precision=jax.lax.Precision.HIGHEST)
    return images


def zoom_in(
    images: Real[Array, "*batch height width channels"], size: tuple[int, int]
) -> Real[Array, "*batch {size[0]} {size[1]} channels"]:
    """The centre crop at native resolution (docs/papers/beyond_masking.md A4 a); the image's own size is the identity.

    Raises:
        ValueError: unless the margin is even and not negative on both axes (an odd one has no centre, docs/papers/beyond_masking.md A10 item 13).
    """
    top, left = (_half_margin(have, want) for have, want in zip(images.shape[-3:-1], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1], :]


def _half_margin(have: int, want: int) -> int:
    if want > have or (have - want) % 2:
        raise ValueError(f"a centre crop of {want} px needs {want} px plus an even margin, got {have} px")
    return (have - want) // 2


def draw_offset(key: Key[Array, ""], margin: tuple[int, int]) -> Int32[Array, "2"]:
    """Where a zoomed-out image lies on its canvas: (top, left), each uniform in 0 .. margin - 1 (docs/papers/beyond_masking.md A4 b).

    The margin itself is never drawn, as in the released code; `zoom_out` accepts it. Margin 0 gives 0.

    Args:
        key: one per image (one for a whole batch is the released code's habit).
        margin: canvas minus image, rows and columns, pixels.
    """
    return jax.random.randint(key, (2,), 0, jnp.maximum(jnp.asarray(margin, jnp.int32), 1), jnp.int32)


def zoom_out(
    image: Real[Array, "height width channels"], offset: Int[Array, "2"], size: tuple[int, int]
) -> Real[Array, "{size[0]} {size[1]} channels"]:
    """The image on a larger canvas, the rest filled with its mirror image (symmetric: the edge pixel repeated; docs/papers/beyond_masking.md A4 b).

    Also applied to the prediction, so that both are compared in canvas geometry: it is differentiable.

    Args:
        image: one (vmap for a batch).
        offset: (top, left), each in 0 .. canvas - image, both ends included. Not checked: it is traced.
        size: rows and columns of the canvas, pixels.
    Returns:
        dtype of the image; its values are the image's.
    Raises:
        ValueError: if the canvas is smaller than the image, or the margin larger than it (one mirror is not enough).
    """
    for have, want in zip(image.shape[:2], size, strict=True):
        if not have <= want <= 2 * have:
            raise ValueError(
                f"a canvas of {want} px takes images of {-(-want // 2)} to {want} px, got {have} px"
            )
    rows, columns = (_mirrored(image.shape[axis], offset[axis], size[axis]) for axis in (0, 1))
    return jnp.take(jnp.take(image, rows, axis=0, mode="clip"), columns, axis=1, mode="clip")


def _mirrored(length: int, offset: jax.Array, size: int) -> jax.Array:
    """Which of `length` pixels each of the `size` pixels of a canvas axis shows; int32 [size]."""
    place = jnp.arange(size, dtype=jnp.int32) - jnp.asarray(offset, jnp.int32)
    place = jnp.where(place < 0, -1 - place, place)
    return jnp.where(place >= length, 2 * length - 1 - place, place)


def draw_distortion(key: Key[Array, ""]) -> tuple[Float32[Array, "2"], Float32[Array, ""]]:
    """Parameters of one fish-eye (docs/papers/beyond_masking.md A4 c): centre (cx, cy) from U(-1, 1) and strength from U(0.15, 0.25).

    x goes to the right, y down; the image's corner pixels lie at -1 and 1.
    """
    centre_key, strength_key = jax.random.split(key)
    centre = jax.random.uniform(centre_key, (2,), jnp.float32, -1.0, 1.0)
    return centre, jax.random.uniform(strength_key, (), jnp.float32, *STRENGTH)


def distortion_grid(
    centre: Float[Array, "2"], strength: Float[Array, ""], size: tuple[int, int]
) -> Float[Array, "{size[0]} {size[1]} 2"]:
    """Where each output pixel looks: g' = g + k r (c - g), r = |c - g| (docs/papers/beyond_masking.md A4 c).

    Args:
        centre: (cx, cy).
        strength: k. For k <= 1 / (2 sqrt 2) and a centre inside, all g' lie inside the image.
        size: rows and columns, pixels.
    Returns:
        (x, y) with the corner pixels at -1 and 1; in float32 or wider, as `centre`.
    """
    place, shift = _fish_eye(centre.astype(jnp.promote_types(centre.dtype, jnp.float32)), strength, size)
    return place + shift


def _fish_eye(centre: jax.Array, strength: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Each pixel's own place g and how far away it looks, k r (c - g); [*size, 2] both, in the dtype of `centre`."""
    y, x = (jnp.linspace(-1.0, 1.0, side, dtype=centre.dtype) for side in size)
    place = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
    towards = centre - place
    squared = jnp.sum(towards**2, axis=-1, keepdims=True)
    # The root has no derivative at 0, the product r (c - g) has (0): keep the pixel at the centre out of the root.
    radius = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return place, jnp.asarray(strength, centre.dtype) * radius * towards


def distort(
    image: Real[Array, "height width channels"], centre: Float[Array, "2"], strength: Float[Array, ""]
) -> Float[Array, "height width channels"]:
    """The fish-eye: the image sampled bilinearly at `distortion_grid` (align_corners: pixel = (g' + 1) / 2 (side - 1)).

    Args:
        image: one (vmap for a batch).
        centre: (cx, cy), inside [-1, 1].
        strength: k; 0 is exactly the identity.
    Returns:
        in float32 or wider.
    """
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    height, width, channels = image.shape
    _, shift = _fish_eye(centre.astype(dtype), strength, (height, width))
    last = jnp.asarray([width - 1, height - 1], jnp.int32)
    y, x = jnp.mgrid[:height, :width]
    # From the pixel's own integer place: exact where nothing moves, and five times finer than (g' + 1) / 2 (side - 1).
    position = jnp.clip(jnp.stack([x, y], axis=-1) + shift * (last / 2).astype(dtype), 0, last)
    low = jnp.floor(position).astype(jnp.int32)
    high = jnp.minimum(low + 1, last)
    (x0, y0), (x1, y1) = (jnp.moveaxis(index, -1, 0) for index in (low, high))
    right, lower = jnp.split(position - low, 2, axis=-1)
    pixels = image.astype(dtype).reshape(height * width, channels)

    def at(y: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.take(pixels, y * width + x, axis=0, mode="clip")

    # Four gathers that XLA fuses with their weights; stacked into one they are written out first: 4.6 times as slow (CPU).
    above = (1 - right) * at(y0, x0) + right * at(y0, x1)
    below = (1 - right) * at(y1, x0) + right * at(y1, x1)
    return (1 - lower) * above + lower * below
