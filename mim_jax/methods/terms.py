"""The terms of a loss: sums and counts that are divided once, over all examples, parts of a batch and devices."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Terms = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), per example, [B] each."""
Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count) over examples, scalars."""


def sum_terms(terms: Terms, valid: jax.Array) -> Sums:
    """Per-example sums and counts [B] to scalars; padding (valid [B] false) does not count."""
    return {
        name: (jnp.sum(jnp.where(valid, total, 0.0)), jnp.sum(jnp.where(valid, count, 0.0)))
        for name, (total, count) in terms.items()
    }


def means(sums: Sums, loss_weights: Mapping[str, float]) -> dict[str, jax.Array]:
    """Mean of every term under its own name, and the objective as `loss` where its terms are there."""
    values = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in sums.items()}
    if not loss_weights.keys() <= values.keys():
        return values
    return {**values, "loss": jnp.sum(jnp.stack([w * values[name] for name, w in loss_weights.items()]))}
