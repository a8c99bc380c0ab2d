"""Jacobians for the leakage tests, one row after another.

`jax.jacrev` would map the backward pass over all rows at once, and XLA's CPU compiler (jaxlib 0.10.2) computes such a map of a
layer norm wrongly at large shapes, by 20 to 50 % of the largest value. The least that shows it:

    def norm(x):
        c = x - x.mean(-1, keepdims=True)
        return c * jax.lax.rsqrt(jnp.square(c).mean(-1, keepdims=True) + 1e-6)

    def pull(x, g):
        return jax.vjp(norm, x)[1](g)[0]

    x, g = normal(2, 128, 32), normal(128, 2, 128, 32)
    wrong = jax.jit(jax.vmap(pull, (None, 0)))(x, g)                            # off by 0.48
    right = jax.jit(lambda x, g: jax.lax.map(lambda row: pull(x, row), g))(x, g)

With (1, 256, 32) in place of (2, 128, 32) both agree to 1e-7; without the map, as in training, all shapes tried do.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def jacobian(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """d function(x) [P] / d x, float [P, *x.shape]."""

    def rows(x: jax.Array) -> jax.Array:
        out, pull = jax.vjp(function, x)
        return jax.lax.map(lambda row: pull(row)[0], jnp.eye(len(out), dtype=out.dtype))

    return jax.jit(rows)(x)
