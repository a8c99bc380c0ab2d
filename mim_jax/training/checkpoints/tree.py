"""Between a training state (any pytree) and what is stored: one flat dict from path to array.

Flat, because then a partial restore is a choice of paths, a mismatch is the first path that differs, and the
stored checkpoint knows neither Flax's nor optax's classes. Empty subtrees hold no leaf and come back from the
target's structure.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from mim_jax.training.checkpoints.manifest import CheckpointError, LeafSpec

PyTree: TypeAlias = Any
Flat: TypeAlias = dict[str, Any]


def _path_name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: PyTree) -> Flat:
    """By path ("opt_state/0/mu/kernel"), every leaf. Raises CheckpointError for an ambiguous path."""
    flat: Flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = _path_name(path)
        if not path or name in flat:
            raise CheckpointError(
                f"the state has two leaves named {name!r}, or one without a name: save a dict or dataclass "
                "whose keys hold no '/'"
            )
        flat[name] = leaf
    return flat


def unflatten(structure: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """The tree shaped like `structure` with the leaves of `flat`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[_path_name(path)], structure)


def top_level_names(tree: PyTree) -> set[str]:
    """Names of the entries at the top of a dict or dataclass, empty ones included."""
    children = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)[0]
    return {_path_name(path) for path, _ in children}


def describe(flat: Mapping[str, Any]) -> dict[str, LeafSpec]:
    """Shape and dtype of arrays, or of jax.ShapeDtypeStruct."""
    return {path: LeafSpec(tuple(leaf.shape), str(leaf.dtype)) for path, leaf in flat.items()}


def first_difference(saved: Mapping[str, LeafSpec], wanted: Mapping[str, LeafSpec]) -> str | None:
    """How the first differing leaf differs, in the order of `wanted`, then `saved`; None where all agree."""
    for path in [*wanted, *saved]:
        if (here := wanted.get(path)) != (there := saved.get(path)):
            return f"{path} is {there or 'absent'} in the checkpoint and {here or 'absent'} here"
    return None


def nest(leaves: Mapping[str, LeafSpec]) -> dict[str, Any]:
    """Nested plain dicts of jax.ShapeDtypeStruct without shardings; tuple positions are "0", "1", ..."""
    tree: dict[str, Any] = {}
    for path, spec in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(spec.shape, _dtype(spec.dtype))
    return tree


def _dtype(name: str) -> Any:
    if not name.startswith("key<"):
        return jnp.dtype(name)
    for implementation in ("threefry2x32", "rbg", "unsafe_rbg"):
        key = jax.eval_shape(lambda impl=implementation: jax.random.key(0, impl=impl))
        if str(key.dtype) == name:
            return key.dtype
    raise CheckpointError(f"the checkpoint has random keys of type {name}: use a JAX that knows them")


def is_key(leaf: Any) -> bool:
    """Whether an array or a jax.ShapeDtypeStruct holds typed PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def stored(flat: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What goes to disk: typed keys as their words; arrays without elements are left to the manifest.

    Raises CheckpointError for a leaf that is no jax.Array, or that only one of several processes can see.
    """
    for path, leaf in flat.items():
        if not isinstance(leaf, jax.Array):
            raise CheckpointError(f"{path} is a {type(leaf).__name__}: make it a jax.Array before saving")
        if jax.process_count() > 1 and leaf.is_fully_addressable:
            raise CheckpointError(
                f"{path} is on one process only: give it a sharding over the mesh before saving"
            )
    return {
        path: jax.random.key_data(leaf) if is_key(leaf) else leaf for path, leaf in flat.items() if leaf.size
    }


def stored_targets(flat: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract arrays to read from disk. Raises CheckpointError for a target without a sharding."""
    targets = {}
    for path, leaf in flat.items():
        if getattr(leaf, "sharding", None) is None:
            raise CheckpointError(f"the target of {path} has no sharding: say where it goes before restoring")
        if leaf.size:
            # Keys gain a last axis of words; a sharding that does not mention it leaves it whole.
            data = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
            targets[path] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
    return targets


def restored(flat: Mapping[str, Any], arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The inverse of `stored`: leaves like the targets `flat` from the arrays read."""
    return {path: _restored_leaf(target, arrays.get(path)) for path, target in flat.items()}


def _restored_leaf(target: Any, array: jax.Array | None) -> jax.Array:
    if array is None:
        empty = jax.jit(lambda: jnp.zeros(target.shape, target.dtype), out_shardings=target.sharding)
        return empty()
    if is_key(target):
        return jax.random.wrap_key_data(array, impl=_key_implementation(target))
    return array


def _key_implementation(target: Any) -> Any:
    found: list[Any] = []
    jax.eval_shape(
        lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct(target.shape, target.dtype)
    )
    return found[0]
