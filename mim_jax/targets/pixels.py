"""Pixels and patches. A patch vector is flattened (row, column, channel), channel fastest; patches are in raster order."""

from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real, Shaped, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PatchNorm = Literal["channel", "joint", "none"]
"""How a target patch is normalised; see `normalise_patches`."""
NORM_EPS = 1e-6
AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)


def patchify(
    images: Shaped[Array, "batch height width channels"], patch: int
) -> Shaped[Array, "batch (height//{patch})*(width//{patch}) {patch}**2*channels"]:
    """Images as their patches.

    Raises:
        ValueError: if a side is not a multiple of the patch.
    """
    batch, height, width, channels = images.shape
    if height % patch or width % patch:
        raise ValueError(f"images of {height}x{width} px cannot be cut into patches of {patch} px")
    rows, columns = height // patch, width // patch
    blocks = images.reshape(batch, rows, patch, columns, patch, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(
    patches: Shaped[Array, "batch {grid[0]*grid[1]} patch_dim"], grid: tuple[int, int]
) -> Shaped[Array, "batch height width 3"]:
    """The exact inverse of `patchify` for three channels."""
    batch, _, values = patches.shape
    rows, columns = grid
    patch = round((values // 3) ** 0.5)
    blocks = patches.reshape(batch, rows, columns, patch, patch, 3)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch, columns * patch, 3)


def to_unit(
    images: UInt8[AnyArray, "*shape"] | Float[AnyArray, "*shape"],
) -> Float[AnyArray, "*shape"]:
    """uint8 0..255 to float32 0..1; floats pass unchanged (they are taken to be in [0, 1] already)."""
    return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images


def normalise(
    images: Float[Array | np.ndarray, "*batch channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch channels"]:
    """(image - mean) / std per channel, images in [0, 1]."""
    return (jnp.asarray(images) - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def denormalise(
    images: Float[Array, "*batch channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch channels"]:
    """The inverse of `normalise`."""
    return images * jnp.asarray(std, images.dtype) + jnp.asarray(mean, images.dtype)


def flip_where(
    images: Shaped[Array | np.ndarray, "batch height width channels"],
    flip: Bool[Array | np.ndarray, " batch"],
) -> Shaped[Array, "batch height width channels"]:
    """Mirrors left-right the images whose `flip` is true."""
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)


def normalise_patches(
    values: Real[Array, "*batch patch_dim"], how: PatchNorm
) -> Float[Array, "*batch patch_dim"]:
    """Targets relative to their own patch.

    "channel" is Beyond Masking's PN (docs/papers/beyond_masking.md A3.2; give it values in [0, 1]): for each channel of a patch
    (v - mean) / (sqrt(var) + 1e-6). "joint" is MAE's (docs/papers/amt.md 1.2): over all values of a patch
    (v - mean) / sqrt(var + 1e-6). Variances are unbiased. "none" leaves the values as they are. A flat patch becomes 0
    up to rounding; gradients are finite there, too.

    Args:
        values: patch vectors of three channels as `patchify` makes them, channel fastest.
        how: "channel", "joint" or "none".
    Returns:
        in float32 or wider.
    Raises:
        ValueError: for another `how`, or for patches of one pixel, which have no variance.
    """
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if how == "none":
        return values
    if how not in get_args(PatchNorm):
        raise ValueError(f"how must be one of {', '.join(get_args(PatchNorm))}, got {how!r}")
    if values.shape[-1] < 6:
        raise ValueError(
            "patches of one pixel have no variance to be normalised by: use a patch of at least 2 px"
        )
    if how == "joint":
        centred, var = _centre(values, axis=-1)
        return centred / jnp.sqrt(var + NORM_EPS)
    centred, var = _centre(values.reshape(*values.shape[:-1], -1, 3), axis=-2)
    # The root has no derivative at 0: keep a flat patch out of it.
    std = jnp.where(var > 0, jnp.sqrt(jnp.where(var > 0, var, 1)), 0)
    return (centred / (std + NORM_EPS)).reshape(values.shape)


def _centre(values: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Values minus their mean along an axis, and their unbiased variance (in two passes: no cancellation)."""
    centred = values - jnp.mean(values, axis=axis, keepdims=True)
    return centred, jnp.sum(centred**2, axis=axis, keepdims=True) / (values.shape[axis] - 1)


def normalise_locally(
    images: Real[Array, "batch height width 3"], window: int = 47
) -> Float[Array, "batch height width 3"]:
    """Every pixel relative to the square around it, per channel: SimMIM's target on SwinV2 (docs/papers/dark_secrets.md 1.4).

    (x - mean) / sqrt(var + 1e-6) over the window x window pixels around a pixel that lie in the image; the variance is
    unbiased: max(0, (E[x^2] - mean^2) n / (n - 1)) of n pixels.

    Args:
        window: side of the square in pixels, odd and at least 3.
    Returns:
        in float32 or wider.
    Raises:
        ValueError: for an even window or one below 3, and for images of one pixel.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"the window of the local normalisation is odd and at least 3 px, not {window}")
    if images.shape[1] * images.shape[2] < 2:
        raise ValueError("images of one pixel have no variance to be normalised by")
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    # Against cancellation in E[x^2] - mean^2: a shift changes nothing else.
    images = images - jnp.mean(images, axis=(1, 2), keepdims=True)
    near_row, near_column = (_band(side, window // 2) for side in images.shape[1:3])
    rows, columns = jnp.asarray(near_row, images.dtype), jnp.asarray(near_column, images.dtype)
    counts = np.outer(near_row.sum(axis=1), near_column.sum(axis=1))[..., None]

    def sums(x: jax.Array) -> jax.Array:
        # As products of matrices: two fast passes on any device, and no sums that grow along the image.
        x = jnp.einsum("rh,bhwc->brwc", rows, x, precision="highest")
        return jnp.einsum("sw,brwc->brsc", columns, x, precision="highest")

    mean = sums(images) / jnp.asarray(counts, images.dtype)
    # counts x (E[x^2] - mean^2) / (counts - 1)
    spread = sums(jnp.square(images)) / jnp.asarray(counts, images.dtype) - jnp.square(mean)
    var = jnp.maximum(spread * jnp.asarray(counts / (counts - 1), images.dtype), 0)
    return (images - mean) / jnp.sqrt(var + NORM_EPS)


def _band(side: int, reach: int) -> np.ndarray:
    """1 where two places of an axis are at most `reach` apart, float64 [side, side]."""
    place = np.arange(side)
    return (np.abs(place[:, None] - place[None, :]) <= reach).astype(np.float64)
