"""The train step: corrupt, forward, loss, update, in one jit with shardings in and out and a donated state."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mim_jax.methods.protocol import Artefacts, Batch, Method
from mim_jax.models.vit import Params
from mim_jax.training.faults import GRADIENTS, VALUES, finite_leaves
from mim_jax.training.keys import Purpose, example_keys
from mim_jax.training.optimiser import learning_rate
from mim_jax.training.sharding import batch_sharding, replicated, state_shardings
from mim_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def term_sums(method: Method, params: Params, batch: Batch, artefacts: Artefacts) -> tuple[Sums, Artefacts]:
    """Every term of the loss on a (part of a) batch: (sum, count) over its valid examples, scalars; and new artefacts."""
    seed = method.config.seed
    corrupt_keys = example_keys(seed, Purpose.CORRUPT, batch["draw"], batch["index"])
    forward_keys = example_keys(seed, Purpose.FORWARD, batch["draw"], batch["index"])
    view = method.corrupt(corrupt_keys, batch, artefacts)
    outputs = method.forward(params, view, forward_keys, True)
    return sum_terms(method.loss(outputs, view), batch["valid"]), method.collect(artefacts, outputs)


def sum_terms(terms: dict[str, tuple[jax.Array, jax.Array]], valid: jax.Array) -> Sums:
    """Per-example sums and counts [B] to scalars; padding does not count."""
    return {
        name: (jnp.sum(jnp.where(valid, total, 0.0)), jnp.sum(jnp.where(valid, count, 0.0)))
        for name, (total, count) in terms.items()
    }


def gradients(
    method: Method, params: Params, batch: Batch, artefacts: Artefacts, parts: int
) -> tuple[Any, Metrics, Artefacts]:
    """Gradient of the objective over a whole batch, worked in `parts`; exact also where counts differ between parts.

    The objective divides each term's sum by its count over the *whole* batch. Counts do not depend on the parameters,
    so a first pass finds them (XLA drops the forward pass that they do not need); the gradients then simply add up.
    """

    def split(x: jax.Array) -> jax.Array:  # part i = rows i, i + parts, ...: every device keeps its own rows
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def objective(
        params: Params, part: Batch, artefacts: Artefacts, counts: Any
    ) -> tuple[jax.Array, tuple[Sums, Artefacts]]:
        sums, collected = term_sums(method, params, part, artefacts)
        counts = {name: count for name, (_, count) in sums.items()} if counts is None else counts
        weighted = [
            w * sums[name][0] / jnp.maximum(counts[name], 1.0) for name, w in method.loss_weights.items()
        ]
        return jnp.sum(jnp.stack(weighted)), (sums, collected)

    derive = jax.grad(objective, has_aux=True)
    if parts == 1:
        grads, (sums, collected) = derive(params, batch, artefacts, None)
        return grads, means(method, sums), collected
    divided = jax.tree.map(split, dict(batch))
    counted = jax.lax.map(
        lambda part: {k: c for k, (_, c) in term_sums(method, params, part, artefacts)[0].items()}, divided
    )
    counts = jax.tree.map(lambda c: jnp.sum(c, axis=0), counted)

    def add(carry: Any, part: Batch) -> tuple[Any, None]:
        total, held = carry
        grads, (sums, held) = derive(params, part, held, counts)
        return (jax.tree.map(jnp.add, total, (grads, sums)), held), None

    first = jax.tree.map(lambda x: x[0], divided)
    grad_shapes, (sum_shapes, _) = jax.eval_shape(derive, params, first, artefacts, counts)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grad_shapes, sum_shapes))
    ((grads, sums), collected), _ = jax.lax.scan(add, (zeros, artefacts), divided)
    return grads, means(method, sums), collected


def means(method: Method, sums: Sums) -> Metrics:
    """Mean of every term under its own name, and the objective as `loss` where its terms are there."""
    found = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in sums.items()}
    if not method.loss_weights.keys() <= found.keys():
        return found
    return {**found, "loss": jnp.sum(jnp.stack([w * found[name] for name, w in method.loss_weights.items()]))}


def make_train_step(
    method: Method,
    optimiser: optax.GradientTransformation,
    shapes: TrainState,
    mesh: jax.sharding.Mesh,
    steps_per_epoch: float,
) -> StepFunction:
    """The compiled update of one phase: (state, batch) -> (state, metrics); the state passed in is given up."""
    config = method.config
    shardings = state_shardings(shapes, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, metrics, artefacts = gradients(
            method, state.params, batch, state.artefacts, config.optim.accumulation
        )
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = config.optim.ema
        ema = (
            jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
            if decay
            else {}
        )
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics[VALUES], metrics[GRADIENTS] = finite_leaves(state.params), finite_leaves(grads)
        metrics["lr"] = learning_rate(state.step, config, steps_per_epoch)
        return dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema,
            artefacts=artefacts,
        ), metrics

    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
