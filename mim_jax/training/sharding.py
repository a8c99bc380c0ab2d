"""One mesh with the axes data, fsdp and tensor; where batches and states lie on it, by rule over names and shapes."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mim_jax.config.schema import Mesh
from mim_jax.methods.rules import name_of

TENSOR_RULES = (
    (r"attn/qkv/(kernel|bias|q_bias|v_bias)$", -2),  # heads, of [D, 3, heads, head_dim] and the like
    (r"mlp/fc1/(kernel|bias)$", -1),  # hidden units
    (r"(attn/proj|mlp/fc2)/kernel$", 0),  # the inputs (heads, hidden units): the partial products are summed
)
"""Which dimension the tensor axis splits."""

FSDP_MIN_SIZE = 2048
"""Smaller parameters are copied to every device: gathering them would cost more than it saves."""


def make_mesh(mesh: Mesh, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The devices (None = those of all hosts) as a mesh; `mesh` is resolved (data is not -1)."""
    shape, axes = (mesh.data, mesh.fsdp, mesh.tensor), ("data", "fsdp", "tensor")
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Examples over data and fsdp: under fsdp every device has its own examples, too."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def leaf_spec(name: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
    """Where one array of the state lies: the tensor axis by rule, fsdp over the largest other dimension it divides."""
    axes: list[str | None] = [None] * len(shape)
    if mesh.shape["tensor"] > 1:
        for pattern, dimension in TENSOR_RULES:
            if re.search(pattern, name) and shape[dimension] % mesh.shape["tensor"] == 0:
                axes[dimension] = "tensor"
    fsdp = mesh.shape["fsdp"]
    if fsdp > 1 and int(np.prod(shape)) >= FSDP_MIN_SIZE:
        free = [d for d in range(len(shape)) if axes[d] is None and shape[d] % fsdp == 0]
        if free:
            axes[max(free, key=lambda d: shape[d])] = "fsdp"
    return PartitionSpec(*axes)


def state_shardings(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """A sharding for every leaf of a state (parameters, moments and averages alike; artefacts and running statistics are replicated)."""

    def choose(path: Any, leaf: Any) -> NamedSharding:
        name = name_of(path)
        if name.startswith(("artefacts", "batch_stats")):
            return replicated(mesh)
        spec = leaf_spec(name, leaf.shape, mesh)
        logging.vlog(1, "sharding %s %s: %s", name, leaf.shape, spec)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(choose, shapes)


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes with shardings: what a checkpoint is restored onto."""
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )
