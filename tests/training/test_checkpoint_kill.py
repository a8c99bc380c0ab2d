"""kill -9 at every stage of a save: what restores is whole, bit for bit, and the newest that was saved."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

STAGES = {  # where a save is killed -> the newest step that is saved then
    "before_the_arrays": 2,
    "arrays_half_written": 2,
    "before_the_manifest": 2,
    "manifest_half_written": 2,
    "before_the_rename": 2,
    "before_old_ones_are_removed": 3,
    "an_old_one_half_removed": 3,
}
SIZE = 100_000
# Every stage has a process of its own, forked before jax starts a backend, and killed once it says that it stands there.
WORKER = f"""
import os, signal, sys, time
import jax, jax.numpy as jnp
import orbax.checkpoint as ocp
from mim_jax.training.checkpoints import Checkpoints, manifest

def stand(pipe):
    os.write(pipe, b"x")
    time.sleep(600)

def halve(path):
    os.truncate(path, os.path.getsize(path) // 2)

def stop_at(stage, pipe):
    write_manifest, path = manifest.write_manifest, ocp.path.atomicity.AtomicRenameTemporaryPath
    finalize, delete = path.finalize, ocp.path.deleter.PathDeleter.delete
    if stage == "before_the_arrays":
        async def async_save(*a, **b):
            stand(pipe)
        ocp.PyTreeCheckpointHandler.async_save = async_save
    elif stage == "arrays_half_written":
        def compute_checksums(path):
            found = [os.path.join(top, name) for top, _, names in os.walk(path) for name in names]
            halve(max(found, key=os.path.getsize))
            stand(pipe)
        manifest.compute_checksums = compute_checksums
    elif stage == "before_the_manifest":
        manifest.write_manifest = lambda *a: stand(pipe)
    elif stage == "manifest_half_written":
        def half(path, content):
            write_manifest(path, content)
            halve(os.path.join(path, "manifest.json"))
            stand(pipe)
        manifest.write_manifest = half
    elif stage == "before_the_rename":
        async def stand_or_finalize(self):
            if self.get_final().name == "00000003":
                stand(pipe)
            await finalize(self)
        path.finalize = stand_or_finalize
    elif stage == "before_old_ones_are_removed":
        ocp.path.deleter.PathDeleter.delete = lambda *a, **b: stand(pipe)
    else:
        def half_remove(self, path, **b):
            os.remove(path / "arrays" / "_METADATA")
            stand(pipe)
        ocp.path.deleter.PathDeleter.delete = half_remove

def save_until(stage, folder, pipe):
    with Checkpoints(os.path.join(folder, stage), keep_last=1) as checkpoints:
        for step in (1, 2, 3):
            if step == 3:
                stop_at(stage, pipe)
            x = jax.random.normal(jax.random.key(step), ({SIZE},))
            checkpoints.save(step, {{"x": x, "step": jnp.int32(step)}})
            checkpoints.wait()

for stage in {tuple(STAGES)!r}:
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.close(reads)
        try:
            save_until(stage, sys.argv[1], writes)
        finally:
            os._exit(1)
    os.close(writes)
    stood = os.read(reads, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(stage, stood, flush=True)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of a killed run for each stage."""
    folder = tmp_path_factory.mktemp("killed")
    ran = subprocess.run(
        [sys.executable, "-c", WORKER, str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.stdout.split("\n")[:-1] == [f"{stage} True" for stage in STAGES], ran.stderr
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_inside_a_save_loses_nothing_that_was_saved(killed: Path, stage: str) -> None:
    directory, newest = killed / stage, STAGES[stage]
    unfinished = [name for name in os.listdir(directory) if name.endswith(".orbax-checkpoint-tmp")]
    assert len(unfinished) == (newest == 2)  # the kill fell inside the save
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {
        "x": jax.ShapeDtypeStruct((SIZE,), jnp.float32, sharding=here),
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=here),
    }
    with Checkpoints(directory, keep_last=1) as checkpoints:
        found = checkpoints.restore(target)
        assert found is not None
        step, state = found
        assert step == newest and int(state["step"]) == newest
        np.testing.assert_array_equal(state["x"], jax.random.normal(jax.random.key(newest), (SIZE,)))
        checkpoints.save(4, state)
    assert os.listdir(directory) == ["00000004"]  # and the next save leaves nothing of it behind
