"""Token ids: the nearest of V centroids in squared Euclidean distance (docs/papers/mapet.md 8.1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def nearest_centroid(
    features: Float[Array, "*batch dim"], centroids: Float[Array, "vocab dim"]
) -> Int32[Array, "*batch"]:
    """Ids of the nearest centroids; ties go to the smaller id."""
    # |f|^2 is the same for every centroid, so it is left out: one matmul decides.
    products = jnp.einsum("...d,vd->...v", features, centroids, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(0.5 * jnp.sum(jnp.square(centroids), axis=-1) - products, axis=-1).astype(jnp.int32)
