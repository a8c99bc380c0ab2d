"""Degradation in place: blur by a random dense kernel, and random grey (Beyond Masking, arXiv 2203.14313; docs/papers/beyond_masking.md A4 d, e).

Both act on the mean/std-normalised image and leave every pixel where it is. Each comes as a draw (with a key, one per
image) and as a pure function of what was drawn; both are linear and compute in float32 or wider.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key, Real

MAX_WEIGHT = 0.667
"""Upper end of a grey weight: three of them sum to 1.0005 on average (docs/papers/beyond_masking.md A4 e)."""


def draw_kernel(
    key: Key[Array, ""], size: int = 7, std: float = 0.02
) -> Float32[Array, "out=3 in=3 {size} {size}"]:
    """One dense kernel, i.i.d. N(1 / size^2, std^2): every output channel mixes all three inputs (docs/papers/beyond_masking.md A4 d).

    Args:
        key: one per image.
        size: side in pixels, odd.
        std: of the weights.
    """
    return 1.0 / size**2 + std * jax.random.normal(key, (3, 3, size, size), jnp.float32)


def blur(
    images: Real[Array, "batch height width 3"], kernels: Float[Array, "batch out=3 in=3 side side"]
) -> Float[Array, "batch height width 3"]:
    """Cross-correlation of each image with its own kernel, stride 1, zero padding to the same size (docs/papers/beyond_masking.md A4 d, no bias).

    Args:
        kernels: of an odd side.
    Returns:
        in float32 or wider.
    Raises:
        ValueError: for kernels that are not square with an odd side, or not one per image.
    """
    batch, height, width, channels = images.shape
    side = kernels.shape[-1]
    if side % 2 == 0 or kernels.shape != (batch, channels, channels, side, side):
        raise ValueError(
            f"kernels must be [{batch}, {channels}, {channels}, k, k] with k odd, got {list(kernels.shape)}"
        )
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    half = side // 2
    # One matrix product per image: columns are unfolded along x only (k C values a pixel), the product gives the k C
    # terms (ky, out) of every padded row, and k shifted additions along y end it. Forward on two CPU cores, per image of
    # 32 / 224 px: this 0.014 / 3.9 ms, FFT 0.15 / 7.7, im2col einsum 0.31 / 29, one grouped convolution 1.05 / 51. It also
    # keeps the batch axis (a grouped convolution hides it among the channels), so a sharded batch stays where it is.
    planes = jnp.pad(images.astype(dtype).transpose(0, 3, 1, 2), ((0, 0), (0, 0), (half, half), (half, half)))
    unfolded = jnp.stack([planes[..., x : x + width] for x in range(side)], axis=1)  # B, kx, in, padded H, W
    terms = jnp.einsum(
        "brq,bqn->brn",
        kernels.astype(dtype).transpose(0, 3, 1, 4, 2).reshape(batch, side * channels, side * channels),
        unfolded.reshape(batch, side * channels, -1),
        precision=jax.lax.Precision.HIGHEST,  # TF32 or bf16 would cost three digits
    ).reshape(batch, side, channels, height + side - 1, width)
    blurred = terms[:, 0, :, :height]
    for y in range(1, side):
        blurred = blurred + terms[:, y, :, y : y + height]
    return blurred.transpose(0, 2, 3, 1)


def draw_weights(key: Key[Array, ""]) -> Float32[Array, "3"]:
    """The grey weights of one image, from U(0, 0.667), not made to sum to one (docs/papers/beyond_masking.md A4 e)."""
    return jax.random.uniform(key, (3,), jnp.float32, 0.0, MAX_WEIGHT)


def decolorize(
    image: Real[Array, "height width 3"], weights: Float[Array, "3"]
) -> Float[Array, "height width 3"]:
    """Grey = weights . (R, G, B), repeated in three channels so that the patch embedding stays that of RGB (docs/papers/beyond_masking.md A10 item 6).

    Args:
        image: one (vmap for a batch).
    Returns:
        in float32 or wider.
    """
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    weighted = image.astype(dtype) * weights.astype(dtype)
    # Three terms written out: XLA's reduction over a last axis of 3 is five times as slow on the CPU.
    grey = weighted[..., 0:1] + weighted[..., 1:2] + weighted[..., 2:3]
    return jnp.broadcast_to(grey, image.shape)
