"""Pixels and patches. A patch vector is flattened (row, column, channel), channel fastest; patches are in raster order."""

import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] to [B, (H / p)(W / p), p p C].

    Raises:
        ValueError: if a side is not a multiple of the patch.
    """
    batch, height, width, channels = images.shape
    if height % patch or width % patch:
        raise ValueError(f"images of {height}x{width} px cannot be cut into patches of {patch} px")
    rows, columns = height // patch, width // patch
    blocks = images.reshape(batch, rows, patch, columns, patch, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The exact inverse of `patchify` for three channels: [B, L, p p 3] to [B, H, W, 3]."""
    batch, _, values = patches.shape
    rows, columns = grid
    patch = round((values // 3) ** 0.5)
    blocks = patches.reshape(batch, rows, columns, patch, patch, 3)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch, columns * patch, 3)


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 0..255 to float32 0..1; floats pass unchanged (they are taken to be in [0, 1] already)."""
    return images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """(image - mean) / std per channel, images [..., 3] in [0, 1]."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def denormalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """The inverse of `normalise`."""
    return images * jnp.asarray(std, images.dtype) + jnp.asarray(mean, images.dtype)


def flip_where(images: jax.Array, flip: jax.Array) -> jax.Array:
    """Mirrors left-right the images [B, H, W, C] whose `flip` [B] is true."""
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
