"""The terms of a loss: sums and counts that are divided once, over all examples, parts of a batch and devices."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Terms = dict[str, tuple[Float[Array, " batch"], Float[Array, " batch"]]]
"""Name -> (sum, count), per example."""
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Name -> (sum, count) over examples."""


def sum_terms(terms: Terms, valid: Bool[Array | np.ndarray, " batch"]) -> Sums:
    """The sums over examples; padding (where `valid` is false) does not count."""
    return {
        name: (jnp.sum(jnp.where(valid, total, 0.0)), jnp.sum(jnp.where(valid, count, 0.0)))
        for name, (total, count) in terms.items()
    }


def means(sums: Sums, loss_weights: Mapping[str, float]) -> dict[str, Float[Array, ""]]:
    """Mean of every term under its own name, and the objective as `loss` where its terms are there."""
    values = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in sums.items()}
    if not loss_weights.keys() <= values.keys():
        return values
    return {**values, "loss": jnp.sum(jnp.stack([w * values[name] for name, w in loss_weights.items()]))}
