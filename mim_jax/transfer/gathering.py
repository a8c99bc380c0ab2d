"""Rows that lie on several hosts, on each of them."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather_rows(x: Any) -> np.ndarray:
    """A batch's array as a whole, also where its rows lie on several hosts."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def local_rows(x: jax.Array) -> np.ndarray:
    """This host's rows of an array whose first axis is divided over the devices, in order; copies count once."""
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def gather_hosts(rows: np.ndarray) -> np.ndarray:
    """The rows of all hosts, one host's after another's, on each of them."""
    if jax.process_count() == 1:
        return rows
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
