"""Joining the other hosts, where there are any."""

import os

import jax

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
