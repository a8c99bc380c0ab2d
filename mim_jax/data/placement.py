"""From each host's part of a batch to device arrays: of all hosts, or of one."""

import jax
import numpy as np


def place(batch: dict[str, np.ndarray], sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """Every key as one global array, its first axis divided as `sharding` says; each host gives its own
    rows."""
    make = jax.make_array_from_process_local_data
    return {key: make(sharding, value) for key, value in batch.items()}


class LocalDevices:
    """This host's devices, for work that each host does by itself: rows sharded over them, parameters replicated."""

    def __init__(self) -> None:
        self._devices = jax.local_devices()
        mesh = jax.sharding.Mesh(np.array(self._devices), ("data",))
        self.sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        self.replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def round_up(self, batch_size: int) -> int:
        """The batch size, or the next larger one that the devices can share."""
        return -(-batch_size // len(self._devices)) * len(self._devices)
