"""Colour jitter: an augmentation, per image (docs/papers/mapet.md 9: brightness, contrast, saturation, each x U(0.6, 1.4))."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 weights, those of PIL's and torchvision's grey."""


def jitter(
    key: Key[Array, ""], image: Float[Array, "height width 3"], strength: float
) -> Float[Array, "height width 3"]:
    """Brightness, contrast and saturation, each times its own U(1 - strength, 1 + strength), in a random order.

    Args:
        key: one per image (vmap for a batch).
        image: in [0, 1].
        strength: 0 leaves the image as it is.
    Returns:
        in [0, 1].
    """
    factor_key, order_key = jax.random.split(key)
    factors = jax.random.uniform(factor_key, (3,), minval=1.0 - strength, maxval=1.0 + strength)
    return jitter_with(image, factors, jax.random.permutation(order_key, 3))


def jitter_with(
    image: Float[Array, "height width 3"], factors: Float[Array, "3"], order: Int[Array, "3"]
) -> Float[Array, "height width 3"]:
    """The explicit entry: `factors` of brightness, contrast, saturation, applied in `order` (a permutation of 0..2)."""
    luma = jnp.asarray(LUMA, image.dtype)

    def blend(x: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
        return jnp.clip(factor * x + (1.0 - factor) * other, 0.0, 1.0)

    operations = (
        lambda x: blend(x, jnp.zeros_like(x), factors[0]),
        lambda x: blend(x, jnp.full_like(x, jnp.mean(x @ luma)), factors[1]),
        lambda x: blend(x, jnp.broadcast_to((x @ luma)[..., None], x.shape), factors[2]),
    )
    for place in range(3):
        image = jax.lax.switch(order[place], operations, image)
    return image
