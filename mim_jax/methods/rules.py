"""Rules over parameter names ("encoder/block_03/attn/qkv/kernel"): first match wins, no match is an error.

The one place where initial values come from: Flax modules declare shapes only (`models.layers.uninitialised`).
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Initialiser = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
T = TypeVar("T")


def first_match(rules: Sequence[tuple[str, T]], name: str) -> T:
    """The value of the first rule whose regular expression is found in `name`.

    Raises:
        KeyError: if there is none: a parameter nobody thought of is a mistake, not a default.
    """
    for pattern, value in rules:
        if re.search(pattern, name):
            return value
    raise KeyError(f"no rule matches the parameter {name}")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a method says of its parameters."""

    init: Sequence[tuple[str, Initialiser]]
    decay: Sequence[tuple[str, bool]] = ((r"(kernel|mask_token|table)$", True), (r".", False))
    frozen: Sequence[tuple[str, bool]] = ((r".", False),)
    layers: Sequence[tuple[str, int]] = ((r".", 0),)
    """Layer ids for layer-wise learning rates: `optim.layer_decay` to the power of `last_layer` minus the id."""
    last_layer: int = 0
    not_inherited: tuple[str, ...] = ()
    """Beginnings of the names of encoder parameters that a run with `config.init` does not take over."""


def vit_layers(depth: int) -> Sequence[tuple[str, int]]:
    """BEiT's ids (docs/papers/amt.md 1.6, 2.2): 0 for what comes before the blocks, block i + 1, the last for the rest."""
    blocks = [(rf"encoder/block_{index:02d}/", index + 1) for index in range(depth)]
    return (*blocks, (r"(cls_token|mask_token|pos_embed|patch_embed/.*)$", 0), (r".", depth + 1))


def names(tree: Any) -> Any:
    """The tree with every leaf replaced by its name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: name_of(path), tree)


def name_of(path: Any) -> str:
    """A key path as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_rules(rules: Sequence[tuple[str, T]], tree: Any) -> Any:
    """The tree with every leaf replaced by its rule's value."""
    return jax.tree.map(lambda name: first_match(rules, name), names(tree))


KEY_NAMES = (r"^decoder_embed/", "bridge/")
"""A parameter that was renamed keeps the key of its first name, and so the initial values of earlier runs."""


def init_by_rules(shapes: Any, rules: Sequence[tuple[str, Initialiser]], key: jax.Array) -> Any:
    """Draws every parameter by its rule, with a key of its own name: the result does not depend on the others.

    Args:
        shapes: tree of things with shape and dtype.
    """

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = name_of(path)
        seed = re.sub(*KEY_NAMES, name)
        own = jax.random.fold_in(key, zlib.crc32(seed.encode()))
        return first_match(rules, name)(own, leaf.shape, jnp.dtype(leaf.dtype))

    return jax.tree_util.tree_map_with_path(draw, shapes)


# Initialisers, in the signature of jax.nn.initializers.


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.ones(shape, dtype)


def constant(value: float) -> Initialiser:
    """Every entry `value`."""
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


def normal(std: float) -> Initialiser:
    """N(0, std^2). timm's truncated normal at std 0.02 cuts at +-2 absolute, that is, not at all."""
    return lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype)


def truncated_normal(std: float, sigmas: float) -> Initialiser:
    """N(0, std^2) cut at +-sigmas * std, not rescaled."""
    return lambda key, shape, dtype: std * jax.random.truncated_normal(key, -sigmas, sigmas, shape, dtype)


def uniform(bound: float) -> Initialiser:
    """U(-bound, bound)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def xavier_uniform(input_axes: int = 1) -> Initialiser:
    """Glorot's uniform for kernels [*in, *out], all outputs together (MAE: also the fused q, k, v); `in` has so many axes."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        fan_in, fan_out = math.prod(shape[:input_axes]), math.prod(shape[input_axes:])
        bound = (6.0 / (fan_in + fan_out)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw
