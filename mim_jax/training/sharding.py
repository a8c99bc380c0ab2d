"""One mesh with the axes data, fsdp and tensor; where batches and states lie on it, by rule over names and shapes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Mesh
from mim_jax.methods.rules import first_match, name_of

F, T = "fsdp", "tensor"
SHARDING_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attn/qkv/kernel$", (F, None, T, None)),  # [D, 3, heads, head_dim]
    (
        r"attn/qkv/(bias|q_bias|v_bias)$",
        (None, T, None),
    ),  # [3, heads, head_dim]; Swin's q and v have no first axis
    (r"attn/proj/kernel$", (T, None, F)),  # [heads, head_dim, D]: the partial products are summed
    (r"mlp/fc1/kernel$", (F, T)),  # [D, hidden]
    (r"mlp/fc1/bias$", (T,)),
    (r"mlp/fc2/kernel$", (T, F)),  # [hidden, D]: as attn/proj
    (r"/cpb_fc\d/kernel$", ()),  # Swin's network of positions, a few thousand numbers
    (r"kernel$", (F,)),  # embeddings, heads, merging: the inputs
    (r"(bias|scale|gamma|table|pos_embed|cls_token|mask_token)$", ()),
)
"""Name of a parameter -> the mesh axis that splits each of its dimensions, aligned at the last; the first that matches, and no
match is an error. Moments and averages lie where their parameters do. An axis that does not divide a dimension leaves it whole.

Vectors are whole on every device: to gather a few kilobytes costs a wait and saves nothing.
"""

FSDP_MIN_SIZE = 2048
"""Smaller parameters are copied to every device."""


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
    """Where one array of the state lies, by SHARDING_RULES.

    Raises:
        ConfigError: no rule matches, on a mesh that splits parameters.
    """
    if not shape or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return PartitionSpec()
    try:
        axes = first_match(SHARDING_RULES, name)
    except KeyError as error:
        raise ConfigError(
            f"config.mesh: no rule says how the parameter {name} is split: add one to SHARDING_RULES in"
            " mim_jax/training/sharding.py, or leave fsdp and tensor at 1"
        ) from error
    axes = (None,) * (len(shape) - len(axes)) + axes[max(0, len(axes) - len(shape)) :]
    small = math.prod(shape) < FSDP_MIN_SIZE
    return PartitionSpec(
        *(
            axis if axis and size % mesh.shape[axis] == 0 and not (small and axis == F) else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def explain(shapes: Any, mesh: jax.sharding.Mesh) -> list[str]:
    """A line for every parameter: its name, shape, how it is split, and its bytes on one device. shapes: of the parameters."""
    lines, total = [], 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        sharding = NamedSharding(mesh, leaf_spec(name_of(path), leaf.shape, mesh))
        num_bytes = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        total += num_bytes
        split = (
            ", ".join(str(axis or "-") for axis in sharding.spec)
            if any(sharding.spec)
            else "whole on every device"
        )
        lines.append(
            f"{name_of(path)} {list(leaf.shape)} {leaf.dtype}: {split}; {num_bytes:,} bytes a device"
        )
    return [*lines, f"all parameters: {total:,} bytes a device"]


def state_shardings(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """A sharding for every leaf of a state (parameters, moments and averages alike; artefacts and running statistics are replicated)."""

    def choose(path: Any, leaf: Any) -> NamedSharding:
        name = name_of(path)
        if name.startswith(("artefacts", "batch_stats")):
            return replicated(mesh)
        return NamedSharding(mesh, leaf_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(choose, shapes)


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes with shardings: what a checkpoint is restored onto."""
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )
