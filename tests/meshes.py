"""Meshes over a part of the eight simulated devices."""

import jax


def mesh_of(devices: int, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    shape = (devices // (fsdp * tensor), fsdp, tensor)
    axes = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=axes, devices=jax.devices()[:devices])
