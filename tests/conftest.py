"""Eight fake CPU devices, the shared fixtures of the papers' own code, and small configurations."""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from collections.abc import Iterator

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FIXTURES = Path(os.environ.get("MIM_JAX_FIXTURES", ROOT.parent / "shared" / "fixtures"))


def official(name: str) -> "np.lib.npyio.NpzFile":
    """Numbers produced by a paper's own code; the test is skipped where they are absent."""
    path = FIXTURES / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"the fixture {name}.npz is not beside this checkout (MIM_JAX_FIXTURES names its folder)")
    return np.load(path)


@pytest.fixture(scope="session")
def mapet_official() -> "np.lib.npyio.NpzFile":
    return official("mapet_public")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny run that is finished; tests only read it."""
    from tiny import tiny_run

    workdir = tmp_path_factory.mktemp("finished") / "tiny"
    assert tiny_run(workdir) == 0
    return workdir


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_do_not_pile_up() -> Iterator[None]:
    """Programs that a module compiled are dropped after it: some hundred of them hold gigabytes."""
    yield
    jax.clear_caches()
