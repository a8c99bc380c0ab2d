"""Signals ask the run to stop; two processes save together, restore together, and stop at the same step."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mim_jax.errors import ExitCode
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.shutdown import Shutdown


def test_sigterm_sets_the_flag_and_the_old_handler_returns() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Shutdown() as shutdown:
        assert not shutdown.requested and not shutdown.requested_at(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown.requested and shutdown.requested_at(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_interrupt_interrupts() -> None:
    # A shell that starts this in the background has SIGINT ignored, and Python then leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGINT)
    with Shutdown() as shutdown:
        os.kill(os.getpid(), signal.SIGINT)
        assert shutdown.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter() -> None:
        with Shutdown() as shutdown:
            seen.append((signal.getsignal(signal.SIGTERM), shutdown.requested_at(1)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


_PROCESS = """
import os, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from mim_jax.errors import ExitCode
from mim_jax.training.checkpoints import CheckpointError, Checkpoints
from mim_jax.training.shutdown import Shutdown

address, index, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, index)
mesh = jax.make_mesh((2,), ("fsdp",), (AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
zeros = jax.jit(lambda: jnp.zeros(8), out_shardings=sharding)
target = {"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
update = jax.jit(lambda x: x + jnp.arange(8.0), donate_argnums=0)

with Shutdown() as shutdown, Checkpoints(directory) as checkpoints:
    assert checkpoints.restore(target) is None
    try:
        checkpoints.save(0, {"x": jnp.zeros(8)})
    except CheckpointError as error:
        assert "on one process only" in str(error), error
    x = zeros()
    for step in range(1, 10_000):
        x = update(x)
        if step % 5 == 0 and step < 20:
            checkpoints.save(step, {"x": x})
        if step == 20:
            checkpoints.wait()
            if index == 0:
                name = max((os.path.join(top, name) for top, _, names in os.walk(directory + "/00000015")
                            for name in names), key=os.path.getsize)
                open(name, "r+b").truncate(3)
            again, state = checkpoints.restore(target)
            assert again == 10 and state["x"].sharding == sharding
            np.testing.assert_array_equal(state["x"].addressable_shards[0].data[-1], 10.0 * (4 * index + 3))
            checkpoints.save(15, {"x": x})
            if index == 1:
                os.kill(os.getpid(), signal.SIGINT)
        if shutdown.requested_at(step):
            checkpoints.save(step, {"x": x})
            checkpoints.wait()
            print("stopped at", step, flush=True)
            break
        time.sleep(0.005)
jax.distributed.shutdown()
sys.exit(ExitCode.STOPPED)
"""


@pytest.mark.slow
def test_two_processes_save_fall_back_and_stop_together(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, address, str(index), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]
    try:
        ends = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [ExitCode.STOPPED, ExitCode.STOPPED], (
        ends[0][1][-3000:] + ends[1][1][-3000:]
    )
    stopped, other = (int(output.split()[-1]) for output, _ in ends)
    assert stopped == other
    assert stopped > 20
    target = {"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[0]))}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [15, stopped]
        found = checkpoints.restore(target)
    assert found is not None and found[0] == stopped
    np.testing.assert_array_equal(found[1]["x"], stopped * np.arange(8.0))
