"""Eight fake CPU devices, the numbers of the papers' own code, and a finished run."""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Compilation is most of the suite's time, and two fifths of it LLVM's optimiser. What is tested here holds at any level; the
# processes that tests start (resume, kill, the first command) compile as users' do.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=1",
    )
)

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest
from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FIXTURES = ROOT / "tests" / "fixtures"

# Modules imported from here on have their annotations checked at every call, shapes and dtypes of arrays included. Not
# models/encoder.py: beartype does not know a method's `Self`.
MODELS = {path.stem for path in (ROOT / "mim_jax" / "models").glob("*.py")} - {"encoder"}
CHECKED = ("corruptions", "targets", *(f"models.{name}" for name in sorted(MODELS)), "methods.terms")
install_import_hook([f"mim_jax.{name}" for name in CHECKED], "beartype.beartype")


@contextmanager
def unchecked() -> Iterator[None]:
    """Where a function is given on purpose what its annotations forbid, as it must refuse that by itself."""
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)


from tests.expected_skips import pytest_configure  # noqa: E402, F401 - a hook: it refuses unexpected skips


def official(name: str) -> "np.lib.npyio.NpzFile":
    """Arrays that a paper's own code produced (tests/fixtures/README.md)."""
    return np.load(FIXTURES / f"{name}.npz")


def official_optimisers() -> dict[str, Any]:
    """Rates, scales, decay lists and counts of the papers' own code, by paper (mae, amt, simmim, mapet)."""
    listed: dict[str, Any] = json.loads((FIXTURES / "optim_public.json").read_text())
    return listed


@pytest.fixture(params=["float64", pytest.param("float32", marks=pytest.mark.slow)])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both precisions in which numbers are compared with those of the papers' own code; matrix products exact."""
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        yield request.param


LONGEST = (
    "test_tables", "test_tasks", "test_resume", "test_step", "test_parity", "test_bfloat16", "test_beyond_masking", "test_amt",
    "test_transfer", "test_objectives", "test_harness", "test_extensions", "test_divergence", "test_library",
    "test_swin_simmim", "test_combinations", "test_bucket",
)  # fmt: skip
"""Files that take half a minute and more: they start first, so that no process is left alone with one at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever needs a whole run is slow, whatever it does with it; the longest files come first."""
    for item in items:
        if "finished_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))  # stable


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
