"""The held-out loss of a method, beside what it must beat."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.methods.protocol import Batch, Method, View
from mim_jax.training.keys import Purpose, example_keys
from mim_jax.training.state import TrainState
from mim_jax.training.step import Sums, means, sum_terms


def other_images_patches(view: View) -> View:
    """The view with every patch position filled from another image of the batch: no image is left to look at.

    Position j takes its patch from the example 1 + (j mod (B - 1)) further on, so neighbours come from different images.
    """
    patches = view["patches"]
    batch, length = patches.shape[:2]
    shift = 1 + jnp.arange(length) % max(1, batch - 1)
    source = (jnp.arange(batch)[:, None] + shift[None, :]) % batch
    return {**view, "patches": jnp.take_along_axis(patches, source[..., None], axis=0)}


class HeldOut:
    """Mean terms over held-out examples, in the last phase: the same examples, masks and orders at every evaluation."""

    name = "heldout"

    def __init__(
        self, method: Method, batches: Callable[[], Iterable[Batch]], *, mesh: jax.sharding.Mesh
    ) -> None:
        method = method.in_phase(method.phases[-1])
        self.method, self.batches = method, batches
        self._whole = jax.jit(lambda state, batch: _terms(method, state, batch, baselines=True))
        self._plain = jax.jit(lambda state, batch: _terms(method, state, batch, baselines=False))

    def __call__(self, state: TrainState, *, baselines: bool) -> dict[str, float]:
        """`eval/<term>` for every term, and with `baselines` those that it is to be compared with."""
        evaluate, totals = (self._whole if baselines else self._plain), None
        for batch in self.batches():
            sums = evaluate(state, batch)
            totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
        return {
            f"eval/{f'{group}_' if group else ''}{name}": float(value)
            for group, sums in (totals or {}).items()
            for name, value in means(self.method, sums).items()
        }


def _terms(method: Method, state: Any, batch: Batch, *, baselines: bool) -> dict[str, Sums]:
    """Sums of the method's own terms (group "") and of each baseline's."""
    batch = method.held_out(state.params, batch)
    keys = example_keys(method.config.seed, Purpose.HELDOUT, batch["draw"], batch["index"])
    view = method.corrupt(keys, batch, state.artefacts)
    groups = {"": method.loss(method.forward(state.params, view, keys, False), view)}
    if baselines:
        groups |= method.baselines(view, state.artefacts)
        if "patches" in view:
            shuffled = other_images_patches(view)
            groups["other_images"] = method.loss(method.forward(state.params, shuffled, keys, False), view)
    return {group: sum_terms(terms, batch["valid"]) for group, terms in groups.items()}
