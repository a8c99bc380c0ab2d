"""The train step: corrupt, forward, loss, update, in one jit with shardings in and out and a donated state."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mim_jax.config.schema import Config
from mim_jax.keys import Purpose, example_keys
from mim_jax.methods.method import BATCH_STATS, Batch, Method, Variables
from mim_jax.methods.terms import Sums, means, sum_terms
from mim_jax.models.layers import split_over_examples
from mim_jax.models.vit import Params
from mim_jax.training.faults import GRADIENTS, VALUES, finite_leaves
from mim_jax.training.optimiser import learning_rate
from mim_jax.training.sharding import batch_sharding, replicated, state_shardings
from mim_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def term_sums(method: Method, variables: Variables, batch: Batch, seed: int) -> tuple[Sums, dict[str, Any]]:
    """Every term of the loss on a (part of a) batch: (sum, count) over its valid examples, scalars; and new batch_stats."""
    corrupt_keys = example_keys(seed, Purpose.CORRUPT, batch["epoch"], batch["index"])
    forward_keys = example_keys(seed, Purpose.FORWARD, batch["epoch"], batch["index"])
    # The scopes' names are those of profiles, and of mim_jax.plan.
    with jax.named_scope("corrupt"):
        view = _split(method.corrupt(corrupt_keys, batch, variables, True), batch)
    with jax.named_scope("forward"):
        outputs = _split(method.forward(variables, view, forward_keys, True), batch)
    batch_stats = outputs.get(BATCH_STATS, variables.batch_stats)
    with jax.named_scope("loss"):
        return sum_terms(method.loss(outputs, view), batch["valid"]), batch_stats


def _split(tree: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """What has a row for every example of the batch lies where its examples do."""

    def split(x: jax.Array) -> jax.Array:
        has_rows = x.shape[:1] == batch["valid"].shape and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return split_over_examples(x) if has_rows else x

    return jax.tree.map(split, tree)


def gradients(
    method: Method, variables: Variables, batch: Batch, *, parts: int, seed: int
) -> tuple[Any, Metrics, dict[str, Any]]:
    """Gradient of the objective over a whole batch, worked in `parts`; exact also where counts differ between parts.

    The objective divides each term's sum by its count over the *whole* batch. Counts do not depend on the parameters,
    so a first pass finds them (XLA drops the forward pass that they do not need); the gradients then simply add up.

    Returns:
        gradient of the parameters, means of the terms, batch_stats after the last part.
    """

    def split(x: jax.Array) -> jax.Array:  # part i = rows i, i + parts, ...: every device keeps its own rows
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def objective(
        params: Params, part: Batch, batch_stats: dict[str, Any], counts: Any
    ) -> tuple[jax.Array, tuple[Sums, dict[str, Any]]]:
        current = dataclasses.replace(variables, params=params, batch_stats=batch_stats)
        sums, batch_stats = term_sums(method, current, part, seed)
        counts = {name: count for name, (_, count) in sums.items()} if counts is None else counts
        weighted = [
            w * sums[name][0] / jnp.maximum(counts[name], 1.0) for name, w in method.loss_weights.items()
        ]
        return jnp.sum(jnp.stack(weighted)), (sums, batch_stats)

    gradient = jax.grad(objective, has_aux=True)
    params, batch_stats = variables.params, variables.batch_stats
    if parts == 1:
        grads, (sums, batch_stats) = gradient(params, batch, batch_stats, None)
        return grads, means(sums, method.loss_weights), batch_stats
    divided = jax.tree.map(split, dict(batch))
    part_counts = jax.lax.map(
        lambda part: {k: c for k, (_, c) in term_sums(method, variables, part, seed)[0].items()}, divided
    )
    counts = jax.tree.map(lambda c: jnp.sum(c, axis=0), part_counts)

    def add(carry: Any, part: Batch) -> tuple[Any, None]:
        total, batch_stats = carry
        grads, (sums, batch_stats) = gradient(params, part, batch_stats, counts)
        return (jax.tree.map(jnp.add, total, (grads, sums)), batch_stats), None

    first = jax.tree.map(lambda x: x[0], divided)
    grad_shapes, (sum_shapes, _) = jax.eval_shape(gradient, params, first, batch_stats, counts)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grad_shapes, sum_shapes))
    ((grads, sums), batch_stats), _ = jax.lax.scan(add, (zeros, batch_stats), divided)
    return grads, means(sums, method.loss_weights), batch_stats


def make_train_step(
    method: Method,
    optimiser: optax.GradientTransformation,
    shapes: TrainState,
    mesh: jax.sharding.Mesh,
    config: Config,
    steps_per_epoch: float,
) -> StepFunction:
    """The compiled update of one phase: (state, batch) -> (state, metrics); the state passed in is given up.

    Of `config` it takes seed, optim and schedule.
    """
    shardings, decay = state_shardings(shapes, mesh), config.optim.ema

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for models.layers.split_over_examples
            grads, metrics, batch_stats = gradients(
                method, state.variables, batch, parts=config.optim.accumulation, seed=config.seed
            )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            metrics["grad_norm"] = optax.tree.norm(grads)
            metrics[VALUES], metrics[GRADIENTS] = finite_leaves(state.params), finite_leaves(grads)
        metrics["lr"] = learning_rate(state.step, config, steps_per_epoch)
        return dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=optax.incremental_update(params, state.ema, 1.0 - decay) if decay else {},
            batch_stats=batch_stats,
        ), metrics

    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
