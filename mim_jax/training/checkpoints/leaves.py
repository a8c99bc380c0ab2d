"""Between a training state (any pytree) and what a checkpoint holds: one flat dict from path to array.

Flat, because then a partial restore is a choice of paths, a mismatch is the first path that differs, and the stored checkpoint knows
neither Flax's nor optax's classes. Empty subtrees hold no leaf and come back from the target's structure.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from mim_jax.training.checkpoints.manifest import CheckpointError, LeafSpec

PyTree: TypeAlias = Any
Leaves: TypeAlias = dict[str, Any]
"""By path ("opt_state/0/mu/kernel"): arrays, or jax.ShapeDtypeStruct."""


def flatten(tree: PyTree) -> Leaves:
    """Every leaf by its path. Raises CheckpointError for an ambiguous path."""
    leaves: Leaves = {}
    for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = _join(key_path)
        if not key_path or path in leaves:
            raise CheckpointError(
                f"the state has two leaves named {path!r}, or one without a name: save a dict or dataclass "
                "whose keys hold no '/'"
            )
        leaves[path] = leaf
    return leaves


def unflatten(structure: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The tree shaped like `structure` with the leaves of `leaves`."""
    return jax.tree_util.tree_map_with_path(lambda key_path, _: leaves[_join(key_path)], structure)


def top_level_names(tree: PyTree) -> set[str]:
    """Names of the entries at the top of a dict or dataclass, empty ones included."""
    children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    return {_join(key_path) for key_path, _ in children}


def specs_of(leaves: Mapping[str, Any]) -> dict[str, LeafSpec]:
    """Shape and dtype of arrays, or of jax.ShapeDtypeStruct."""
    return {path: LeafSpec(tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves.items()}


def first_difference(saved: Mapping[str, LeafSpec], wanted: Mapping[str, LeafSpec]) -> str | None:
    """How the first differing leaf differs, in the order of `wanted`, then `saved`; None where all agree."""
    for path in [*wanted, *saved]:
        if (here := wanted.get(path)) != (there := saved.get(path)):
            return f"{path} is {there or 'absent'} in the checkpoint and {here or 'absent'} here"
    return None


def abstract_tree(specs: Mapping[str, LeafSpec]) -> dict[str, Any]:
    """Nested plain dicts of jax.ShapeDtypeStruct without shardings; tuple positions are "0", "1", ..."""
    leaves = {path: jax.ShapeDtypeStruct(spec.shape, _dtype(spec.dtype)) for path, spec in specs.items()}
    nested: dict[str, Any] = unflatten_dict(leaves, sep="/")
    return nested


def to_stored(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The arrays that Orbax saves: typed keys as their words; arrays without elements are left to the manifest.

    Raises CheckpointError for a leaf that is no jax.Array, or that only one of several processes can see.
    """
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            raise CheckpointError(f"{path} is a {type(leaf).__name__}: make it a jax.Array before saving")
        if jax.process_count() > 1 and leaf.is_fully_addressable:
            raise CheckpointError(
                f"{path} is on one process only: give it a sharding over the mesh before saving"
            )
    arrays = {
        path: jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for path, leaf in leaves.items()
        if leaf.size
    }
    if not arrays:
        raise CheckpointError("the state has no array with elements: there is nothing to save")
    return arrays


def stored_targets(targets: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract arrays that Orbax reads. Raises CheckpointError for a target without a sharding."""
    stored = {}
    for path, target in targets.items():
        if getattr(target, "sharding", None) is None:
            raise CheckpointError(f"the target of {path} has no sharding: say where it goes before restoring")
        if target.size:
            # Keys gain a last axis of words; a sharding that does not mention it does not split it.
            data = jax.eval_shape(jax.random.key_data, target) if _is_key(target) else target
            stored[path] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=target.sharding)
    return stored


def from_stored(targets: Mapping[str, Any], arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The inverse of `to_stored`: leaves like `targets` from the arrays that Orbax read."""
    return {path: _from_stored(target, arrays.get(path)) for path, target in targets.items()}


def _from_stored(target: Any, array: jax.Array | None) -> jax.Array:
    if array is None:
        empty = jax.jit(lambda: jnp.zeros(target.shape, target.dtype), out_shardings=target.sharding)
        return empty()
    if _is_key(target):
        return jax.random.wrap_key_data(array, impl=_key_implementation(target))
    return array


def _join(key_path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _dtype(name: str) -> Any:
    if not name.startswith("key<"):
        return jnp.dtype(name)
    for implementation in ("threefry2x32", "rbg", "unsafe_rbg"):
        key = jax.eval_shape(lambda impl=implementation: jax.random.key(0, impl=impl))
        if str(key.dtype) == name:
            return key.dtype
    raise CheckpointError(f"the checkpoint has random keys of type {name}: use a JAX that knows them")


def _is_key(leaf: Any) -> bool:
    """Whether an array or a jax.ShapeDtypeStruct holds typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_implementation(target: Any) -> Any:
    found: list[Any] = []
    jax.eval_shape(
        lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct(target.shape, target.dtype)
    )
    return found[0]
