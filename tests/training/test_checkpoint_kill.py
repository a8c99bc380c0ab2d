"""kill -9 in the middle of saves: what restores is whole, bit for bit, and no older than the last saved."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.training.checkpoints import Checkpoints

_SIZE = 300_000
# Saves without a pause, so that nearly every instant is inside one.
_WORKER = f"""
import sys
import jax, jax.numpy as jnp
from mim_jax.training.checkpoints import Checkpoints

with Checkpoints(sys.argv[1]) as checkpoints:
    step = (checkpoints.newest_good() or 0) + 1
    while True:
        x = jax.random.normal(jax.random.key(step), ({_SIZE},))
        checkpoints.save(step, {{"x": x, "step": jnp.int32(step)}})
        print(step - 1, flush=True)  # save has waited for the one before
        step += 1
"""


def test_six_kills_lose_nothing_that_was_saved(tmp_path: Path) -> None:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        "x": jax.ShapeDtypeStruct((_SIZE,), jnp.float32, sharding=here),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=here),
    }
    draw = random.Random(0)
    interrupted = 0
    for _ in range(6):
        worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert worker.stdout is not None
        said = [worker.stdout.readline(), worker.stdout.readline()]
        time.sleep(draw.uniform(0.0, 0.3))
        worker.send_signal(signal.SIGKILL)
        said += worker.communicate()[0].splitlines()
        saved = int(said[-1])
        interrupted += any(path.name.startswith("unfinished-") for path in tmp_path.iterdir())
        with Checkpoints(tmp_path) as checkpoints:
            found = checkpoints.restore(target)
        assert found is not None
        step, state = found
        assert saved <= step <= saved + 1
        assert int(state["step"]) == step
        np.testing.assert_array_equal(state["x"], jax.random.normal(jax.random.key(step), (_SIZE,)))
    assert interrupted, "no kill fell inside a save, so this run proved nothing"
