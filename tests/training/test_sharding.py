"""Sharding by rule: every parameter of every method has a rule, and lies where the rule says."""

from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec
from small import small_config, small_method

from mim_jax.config.check import ConfigError
from mim_jax.methods import Variables
from mim_jax.methods.rules import name_of
from mim_jax.training.optimiser import make_optimiser
from mim_jax.training.sharding import abstract, explain, leaf_spec, state_shardings
from mim_jax.training.state import create_state, state_shapes
from tests.meshes import mesh_of

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mae": ("mae", {"model.layer_scale": 0.1, "model.relative_bias": "per_block"}),
    "mapet": ("mapet", {}),
    "simmim": ("simmim", {}),
    "swin": ("simmim", {"model.variant": "swinv2_mu"}),
    "beyond_masking": ("beyond_masking", {}),
    "amt": ("amt", {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_leaf_of_a_state_has_a_rule(name: str) -> None:
    file, overrides = NETWORKS[name]
    config, method = small_config(file, overrides), small_method(file, overrides)
    params = jax.eval_shape(method.init_params, jax.random.key(0))
    state = state_shapes(method, make_optimiser(config, method.rules, params, 4.0), Variables(), True)
    mesh = mesh_of(8, 2, 2)
    for path, placed in jax.tree_util.tree_leaves_with_path(abstract(state, state_shardings(state, mesh))):
        shard = placed.sharding.shard_shape(placed.shape)  # raises where an axis does not divide a dimension
        leaf = name_of(path)
        if leaf.endswith(("bias", "scale", "gamma", "token")) and "qkv" not in leaf and "fc1" not in leaf:
            assert shard == placed.shape, leaf


def test_specs() -> None:
    mesh = mesh_of(8, 2, 2)
    assert leaf_spec(
        "opt_state/1/mu/encoder/block_00/attn/qkv/kernel", (64, 3, 4, 16), mesh
    ) == PartitionSpec("fsdp", None, "tensor", None)
    assert leaf_spec("encoder/block_00/attn/qkv/kernel", (64, 3, 3, 16), mesh) == PartitionSpec(
        "fsdp", None, None, None
    )
    assert leaf_spec("encoder/block_00/attn/qkv/q_bias", (4, 16), mesh) == PartitionSpec("tensor", None)
    assert leaf_spec("decoder/block_00/mlp/fc2/kernel", (256, 64), mesh) == PartitionSpec("tensor", "fsdp")
    assert leaf_spec("head/kernel", (16, 8), mesh) == PartitionSpec(None, None)  # small
    assert leaf_spec("anything at all", (4, 4), mesh_of(8)) == PartitionSpec()  # nothing is split there
    with pytest.raises(ConfigError, match="how the parameter encoder/w is split: add one to SHARDING_RULES"):
        leaf_spec("encoder/w", (64, 64), mesh)


def test_explained_bytes_are_those_on_a_device() -> None:
    config, method, mesh = small_config("mae"), small_method("mae"), mesh_of(8, 4, 2)
    params = jax.eval_shape(method.init_params, jax.random.key(0))
    optimiser = make_optimiser(config, method.rules, params, 4.0)
    state = create_state(method, optimiser, Variables(), ema=False, mesh=mesh, seed=0)
    lines = explain(params, mesh)
    assert len(lines) == len(jax.tree.leaves(params)) + 1
    assert any("qkv/kernel" in line and "fsdp, -, tensor, -" in line for line in lines)
    on_first = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(state.params)]
    assert lines[-1] == f"all parameters: {sum(shard.nbytes for shard in on_first):,} bytes a device"
