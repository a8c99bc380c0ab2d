"""The state of a run, and its making: shapes first, shardings second, arrays third, on the devices they belong to."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mim_jax.methods.protocol import Artefacts, Method
from mim_jax.training.keys import Purpose, purpose_key
from mim_jax.training.sharding import replicated, state_shardings


@flax.struct.dataclass
class TrainState:
    """All that a run is, besides its configuration: nothing else is needed to go on."""

    step: jax.Array  # int32, updates done
    params: Any
    opt_state: Any
    artefacts: Artefacts
    ema: Any  # moving average of the parameters, {} without


def state_shapes(
    method: Method, optimiser: optax.GradientTransformation, artefacts: Artefacts, ema: bool
) -> TrainState:
    """Shapes and dtypes of a state; nothing is computed."""
    return jax.eval_shape(lambda held: _fresh(method, optimiser, held, ema, jax.random.key(0)), artefacts)


def create_state(
    method: Method,
    optimiser: optax.GradientTransformation,
    artefacts: Artefacts,
    *,
    ema: bool,
    mesh: jax.sharding.Mesh,
) -> TrainState:
    """A fresh state whose arrays are drawn where they live: no device ever holds the whole of a sharded one."""
    shapes = state_shapes(method, optimiser, artefacts, ema)
    shardings = state_shardings(shapes, mesh)
    key = purpose_key(method.config.seed, Purpose.INIT)
    held = jax.device_put(artefacts, jax.tree.map(lambda _: replicated(mesh), artefacts))

    def make(key: jax.Array, artefacts: Artefacts) -> TrainState:
        return _fresh(method, optimiser, artefacts, ema, key)

    return jax.jit(make, out_shardings=shardings)(key, held)


def _fresh(
    method: Method, optimiser: optax.GradientTransformation, artefacts: Artefacts, ema: bool, key: jax.Array
) -> TrainState:
    params = method.init_params(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimiser.init(params),
        artefacts=jax.tree.map(jnp.asarray, artefacts),
        ema=jax.tree.map(lambda p: p + 0, params) if ema else {},  # a copy: donated buffers must not alias
    )
