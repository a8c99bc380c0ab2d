"""--replay=FILE: the update that diverged, repeated exactly, with statistics of every parameter. Nothing is written.

The state is that of the newest good checkpoint before the update (or a fresh one, as the run made it), and the updates from there
are computed again: a batch is a function of its step, and a resumed run is the same run.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.config.schema import Config
from mim_jax.data import Loader, place
from mim_jax.methods import Method
from mim_jax.progress import Progress, log
from mim_jax.training.divergence import refuse_other_batch, same
from mim_jax.training.epochs import phase_of
from mim_jax.training.faults import FLAGS, cause_of, leaf_names
from mim_jax.training.feature_bank import FeatureBank
from mim_jax.training.sharding import batch_sharding, state_shardings
from mim_jax.training.state import TrainState
from mim_jax.training.step import StepFunction, gradients

COLUMNS = (
    "values' norm",
    "largest",
    "not finite",
    "gradient's norm",
    "largest",
    "not finite",
    "after: not finite",
)


class Setup(Protocol):
    """What it needs of a run (`mim_jax.tasks.train.Setup`)."""

    @property
    def config(self) -> Config: ...

    @property
    def method(self) -> Method: ...

    @property
    def mesh(self) -> jax.sharding.Mesh: ...

    @property
    def bank(self) -> FeatureBank: ...

    @property
    def loader(self) -> Loader: ...

    def train_step(self, phase: int, state_shapes: TrainState) -> StepFunction: ...


def replay(setup: Setup, state: TrainState, first_step: int, told: Mapping[str, Any]) -> None:
    """Says what the update of `told` did to every parameter.

    Args:
        state: complete, after `first_step` updates, at most told["step"].
        told: as `divergence.read_divergence` gives it.
    Raises:
        ConfigError: the batch of that step is another one now.
    """
    step, loader, bank, mesh = int(told["step"]), setup.loader, setup.bank, setup.mesh
    refuse_other_batch(told, *loader.examples(step))
    state = bank.adopt(state)
    shapes = jax.eval_shape(lambda: state)
    compiled: dict[int, StepFunction] = {}

    def phase_number(number: int) -> int:
        return phase_of(setup.method, number, len(loader.dataset), setup.config.data.batch_size)

    def update(state: TrainState, number: int) -> tuple[TrainState, dict[str, Any]]:
        phase = phase_number(number)
        if phase not in compiled:
            compiled[phase] = setup.train_step(phase, shapes)
        return compiled[phase](state, place(loader.batch(number), batch_sharding(mesh)))

    def refreshed(state: TrainState, number: int) -> TrainState:
        if refreshes := bank.due(number):
            state, _ = bank.refresh(refreshes, state, lambda: False)
        return state

    log(f"replay   update {step + 1}, from the state after {first_step}")
    with Progress("updates before it", step - first_step) as progress:
        for number in range(first_step, step):
            state, _ = update(refreshed(state, number), number)
            progress.update(1)
    state = refreshed(state, step)
    names = leaf_names(state.params)
    method = setup.method.phases[phase_number(step)].method
    batch = place(loader.batch(step), batch_sharding(mesh))
    before = _statistics(method, setup.config, state, batch, mesh)
    artefacts = jax.tree.map(jnp.copy, state.artefacts)
    state, metrics = update(state, step)
    after = np.asarray(jax.jit(_counts)(state.params))
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    exact = same(told["loss"], loss) and same(told["gradient_norm"], norm)
    log(
        f"loss {loss!r}, gradient norm {norm!r}: "
        + ("as they were" if exact else f"then {told['loss']} and {told['gradient_norm']}")
    )
    flags = {key: metrics[key] for key in FLAGS}
    cause = cause_of(names, flags, loader.batch(step), artefacts, loader.view.keys)
    log(f"cause    {cause.said}")
    log(_table(names, before, after))


def _counts(tree: Any) -> jax.Array:
    """int32 [leaves]: numbers that are not finite."""
    return jnp.stack([jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def _statistics(
    method: Method,
    config: Config,
    state: TrainState,
    batch: Mapping[str, jax.Array],
    mesh: jax.sharding.Mesh,
) -> list[np.ndarray]:
    """Of the weights, then of the gradient: norms, largest magnitudes and counts of what is not finite, each [parameters]."""

    def compute(state: TrainState, batch: Mapping[str, jax.Array]) -> list[jax.Array]:
        parts = config.optim.accumulation
        grads, _, _ = gradients(method, state.variables, batch, parts=parts, seed=config.seed)
        found: list[jax.Array] = []
        for tree in (state.params, grads):
            leaves = [
                jnp.where(jnp.isfinite(leaf), leaf, 0.0).astype(jnp.float32) for leaf in jax.tree.leaves(tree)
            ]
            found.append(jnp.stack([jnp.sqrt(jnp.sum(jnp.square(leaf))) for leaf in leaves]))
            found.append(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
            found.append(_counts(tree))
        return found

    shardings = state_shardings(jax.eval_shape(lambda: state), mesh)
    made = jax.jit(compute, in_shardings=(shardings, batch_sharding(mesh)))(state, batch)
    return [np.asarray(value) for value in made]


def _table(names: list[str], before: list[np.ndarray], after: np.ndarray) -> str:
    """One line a parameter; norms and largest magnitudes are of the finite numbers."""
    width = max(len(name) for name in names)
    lines = [f"{'parameter':{width}}  " + "  ".join(f"{title:>16}" for title in COLUMNS)]
    for row, name in enumerate(names):
        cells = [f"{float(column[row]):16.4g}" for column in before] + [f"{int(after[row]):16d}"]
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    return "\n".join(lines)
