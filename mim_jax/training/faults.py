"""Numbers that are none, traced to where they came in: the batch, the artefacts, the weights, or the gradient of an update."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.config.check import ConfigError
from mim_jax.data.views import ArraySpec
from mim_jax.methods.rules import name_of

SHOWN = 3
"""Names in a sentence."""

VALUES, GRADIENTS = "values_finite", "gradients_finite"
"""Keys of a step's metrics that hold bool [parameters], in the order of the tree: of the weights before the update, and of the
gradient. They stay on the device until an update has gone wrong."""

FLAGS = (VALUES, GRADIENTS)


def finite_leaves(tree: Any) -> jax.Array:
    """bool [leaves], in the tree's order: whether all numbers of a leaf are finite."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def leaf_names(tree: Any) -> list[str]:
    """Names of the leaves, "encoder/block_00/mlp/fc1/kernel", in the tree's order."""
    return [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def refuse_broken_state(params: Any, artefacts: Mapping[str, Any]) -> None:
    """Before training: every weight, and everything that a method has prepared, is finite.

    Raises:
        ConfigError: naming what is not.
    """
    floats = {
        name: leaf
        for name, leaf in zip(
            leaf_names({"params": params, "artefacts": artefacts}),
            jax.tree.leaves({"params": params, "artefacts": artefacts}),
            strict=True,
        )
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    finite = np.asarray(jax.jit(finite_leaves)(list(floats.values()))) if floats else np.ones(0, bool)
    if broken := [name for name, good in zip(floats, finite, strict=True) if not good]:
        raise ConfigError(
            f"the run would start from numbers that are not finite, in {some(broken)}: restore the weights or checkpoints that it"
            " starts from"
        )


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why an update went wrong. said: a clause; remedy: what to do; groups: names of the parameters concerned."""

    said: str
    remedy: str
    groups: tuple[str, ...] = ()


def cause_of(
    names: list[str],
    flags: Mapping[str, Any],
    batch: Mapping[str, np.ndarray],
    artefacts: Mapping[str, Any],
    keys: Mapping[str, ArraySpec],
) -> Cause:
    """What came first, in the order in which an update uses it: inputs, token ids, artefacts, weights, gradient.

    Args:
        names: of the parameters, as `leaf_names`.
        flags: VALUES and GRADIENTS of the update, bool [parameters].
        batch: its batch on the host.
        keys: those of the batch's view.
    """
    if fault := batch_fault(batch, keys):
        return Cause(f"the batch holds {fault}", "correct the data")
    floats = {name: np.asarray(value) for name, value in _local(artefacts).items()}
    if broken := [name for name, value in floats.items() if not np.isfinite(value).all()]:
        return Cause(
            f"the artefacts {some(broken)} are not finite", "start anew, or from an earlier checkpoint"
        )
    lower = "lower config.optim.lr or set config.optim.clip_norm"
    values, gradients = (np.asarray(flags[key]) for key in FLAGS)
    for kind, good in (("weights", values), ("gradient", gradients)):
        if broken := [name for name, fine in zip(names, good, strict=True) if not fine]:
            when = "were already not finite before it" if kind == "weights" else "is not finite"
            return Cause(
                f"the {kind} of {broken[0]} {when}, the first of {len(broken)} of {len(names)} parameters",
                lower,
                tuple(broken),
            )
    return Cause("its inputs, weights and gradients are finite, their sum is not", lower)


def batch_fault(batch: Mapping[str, np.ndarray], keys: Mapping[str, ArraySpec]) -> str:
    """What a batch holds that cannot be learnt from, naming the example; empty where there is nothing."""
    for key, value in batch.items():
        if np.issubdtype(value.dtype, np.floating):
            good = np.isfinite(value.reshape(len(value), -1)).all(axis=1)
            if not good.all():
                return (
                    f"values of {key} that are not finite, of example {int(batch['index'][np.argmin(good)])}"
                )
    for key, spec in keys.items():
        if spec.below is not None and (wrong := (batch[key] < 0) | (batch[key] >= spec.below)).any():
            at = tuple(np.argwhere(wrong)[0])
            return (
                f"the value {int(batch[key][at])} of {key} of example {int(batch['index'][at[0]])}, which is not in"
                f" 0..{spec.below - 1}"
            )
    return ""


def _local(artefacts: Mapping[str, Any]) -> dict[str, Any]:
    """Floating-point artefacts that this process holds whole."""
    named = zip(leaf_names(dict(artefacts)), jax.tree.leaves(dict(artefacts)), strict=True)
    return {
        name: leaf
        for name, leaf in named
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        and (leaf.is_fully_addressable or leaf.is_fully_replicated)
    }


def some(names: list[str]) -> str:
    """'a, b, c and 12 more'."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
