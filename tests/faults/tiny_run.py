"""The run that the fault script breaks: a small JAX update loop that saves every third step and says so.

python tests/faults/tiny_run.py DIRECTORY UNTIL
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script's path begins with its own folder

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mim_jax.errors import ExitCode
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.shutdown import Shutdown

SAVE_EVERY = 3
_OPTIMISER = optax.adamw(1e-2)
State = dict[str, Any]


def initial_state() -> State:
    """About 3 MB: a matrix, AdamW's moments, a random key, an empty and a small artefact."""
    params = {"w": jax.random.normal(jax.random.key(0), (500, 500)) / 22, "b": jnp.zeros(500, jnp.bfloat16)}
    artefacts = {"used": jnp.zeros(8, jnp.int32)}
    return {
        "params": params,
        "opt_state": _OPTIMISER.init(params),
        "key": jax.random.key(1),
        "artefacts": artefacts,
        "ema": {},
    }


def _update(state: State, step: jax.Array) -> State:
    x = jax.random.normal(jax.random.fold_in(state["key"], step), (16, 500))

    def loss(params: State) -> jax.Array:
        return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - x) ** 2)

    updates, opt_state = _OPTIMISER.update(
        jax.grad(loss)(state["params"]), state["opt_state"], state["params"]
    )
    used = state["artefacts"]["used"].at[step % 8].add(1)
    params = optax.apply_updates(state["params"], updates)
    return state | {"params": params, "opt_state": opt_state, "artefacts": {"used": used}}


update = jax.jit(_update, donate_argnums=0)


def digest(state: State) -> str:
    """A sha256 over every bit of the state."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(state | {"key": jax.random.key_data(state["key"])}):
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()[:16]


def train(
    directory: Path, until: int, log: Callable[[str], None], *, history: bool = False, pause: float = 0.0
) -> int:
    """Resumes or starts, and runs to step `until`; returns the exit code.

    Says "ready"; "resumed STEP DIGEST"; "saved STEP" once that is on disk; with `history`, "state STEP
    DIGEST" at every save; "stopped STEP DIGEST" on SIGTERM; "final STEP DIGEST". Sleeps `pause` s a step.
    """
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), initial_state())
    log("ready")
    with Checkpoints(directory, keep_last=3) as checkpoints, Shutdown() as shutdown:
        found = checkpoints.restore(target)
        step, state = found if found is not None else (0, initial_state())
        log(f"resumed {step} {digest(state)}")
        saved = step
        while step < until:
            state = update(state, jnp.int32(step))
            step += 1
            time.sleep(pause)
            stop = shutdown.requested_at(step)
            if step % SAVE_EVERY == 0 or stop:
                checkpoints.wait()
                log(f"saved {saved}")
                if history:
                    log(f"state {step} {digest(state)}")
                checkpoints.save(step, state)
                saved = step
            if stop:
                log(f"stopped {step} {digest(state)}")
                return ExitCode.STOPPED
        if saved < step:
            checkpoints.save(step, state)
    log(f"final {step} {digest(state)}")
    return 0


if __name__ == "__main__":
    sys.exit(train(Path(sys.argv[1]), int(sys.argv[2]), lambda line: print(line, flush=True), pause=0.03))
