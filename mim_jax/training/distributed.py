"""Joining the other hosts, where there are any, and what one of them does for all."""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from mim_jax.config.check import ConfigError
from mim_jax.storage import StorageError

CLUSTERS = {
    "SLURM_STEP_NUM_TASKS": lambda value: int(value) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda value: int(value) > 1,
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
    "MEGASCALE_COORDINATOR_ADDRESS": bool,
    "JAX_COORDINATOR_ADDRESS": bool,
}
"""Environment variables by which a cluster shows itself, and whether their value means more than one process."""


def join() -> None:
    """Starts jax.distributed where a cluster is detected (jax then finds coordinator and ranks by itself)."""
    if any(check(os.environ[name]) for name, check in CLUSTERS.items() if os.environ.get(name)):
        jax.distributed.initialize()


def first_process_does(action: Callable[[], None], what: str) -> None:
    """Runs `action` on the first process; all of them go on, or all raise.

    Args:
        what: names the action where it failed on another process: "the first process could not {what}".
    Raises:
        ConfigError, StorageError: what `action` raised; on the other processes that it failed.
    """
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            action()
        except (ConfigError, StorageError) as error:
            failure = error
    if jax.process_count() > 1:
        fine = bool(multihost_utils.broadcast_one_to_all(np.asarray(failure is None)))
        if not fine and failure is None:
            failure = StorageError(f"the first process could not {what}: its output says why")
    if failure is not None:
        raise failure
