"""The state of a run, and its making: shapes first, shardings second, arrays third, on the devices they belong to."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mim_jax.keys import Purpose, purpose_key
from mim_jax.methods.method import Artefacts, Method, Variables
from mim_jax.training.sharding import replicated, state_shardings


@flax.struct.dataclass
class TrainState:
    """All that a run is, besides its configuration: nothing else is needed to resume."""

    step: jax.Array  # int32, updates done
    params: Any
    opt_state: Any
    artefacts: Artefacts
    ema: Any  # moving average of the parameters, {} without
    batch_stats: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> Variables:
        """What the method may read of it."""
        return Variables(self.params, self.ema, self.batch_stats, self.artefacts, self.step)


def state_shapes(
    method: Method, optimiser: optax.GradientTransformation, prepared: Variables, ema: bool
) -> TrainState:
    """Shapes and dtypes of a state; nothing is computed."""
    return jax.eval_shape(
        lambda prepared: _new_state(method, optimiser, prepared, ema, jax.random.key(0)), prepared
    )


def create_state(
    method: Method,
    optimiser: optax.GradientTransformation,
    prepared: Variables,
    *,
    ema: bool,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> TrainState:
    """A new state whose arrays are drawn where they live: no device ever holds the whole of a sharded one.

    prepared: artefacts and batch_stats to start with. ema: whether a moving average is kept.
    """
    shapes = state_shapes(method, optimiser, prepared, ema)
    shardings = state_shardings(shapes, mesh)
    placed = jax.device_put(prepared, jax.tree.map(lambda _: replicated(mesh), prepared))

    def make(key: jax.Array, prepared: Variables) -> TrainState:
        return _new_state(method, optimiser, prepared, ema, key)

    return jax.jit(make, out_shardings=shardings)(purpose_key(seed, Purpose.INIT), placed)


def _new_state(
    method: Method, optimiser: optax.GradientTransformation, prepared: Variables, ema: bool, key: jax.Array
) -> TrainState:
    params = method.init_params(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimiser.init(params),
        artefacts=jax.tree.map(jnp.asarray, prepared.artefacts),
        ema=jax.tree.map(lambda p: p + 0, params) if ema else {},  # a copy: donated buffers must not alias
        batch_stats=jax.tree.map(jnp.asarray, prepared.batch_stats),
    )
