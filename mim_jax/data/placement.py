"""From each host's part of a batch to global device arrays."""

import jax
import numpy as np


def place(batch: dict[str, np.ndarray], sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """Every key as one global array, its first axis divided as `sharding` says; each host gives its own
    rows."""
    make = jax.make_array_from_process_local_data
    return {key: make(sharding, value) for key, value in batch.items()}
