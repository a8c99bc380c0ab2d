"""What users get wrong: each one sentence on stderr, a non-zero exit, nothing compiled, nothing written."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CASES = {
    "unknown key": (
        ["--config.optim.lrr=1"],
        ["unknown key config.optim.lrr", "did you mean config.optim.lr?"],
    ),
    "unknown section": (
        ["--config.optm.lr=1"],
        ["unknown key config.optm.lr", "did you mean config.optim.lr?"],
    ),
    "unknown method key": (["--config.method.objectiv=pim"], ["did you mean config.method.objective?"]),
    "wrong type": (["--config.data.batch_size=many"], ["config.data.batch_size", "whole number"]),
    "wrong float": (["--config.optim.clip_norm=x"], ["config.optim.clip_norm", "number"]),
    "wrong bool": (["--config.augment.flip=maybe"], ["config.augment.flip", "True or False"]),
    "section as value": (["--config.optim=3"], ["config.optim", "section"]),
    "indivisible batch": (
        ["--config.data.batch_size=50", "--config.optim.accumulation=4"],
        ["batch_size=50", "52"],
    ),
    "image not a multiple": (["--config.model.image_size=9"], ["image_size=9", "patch=2"]),
    "missing folder": (["--config.data.source=folder:/nowhere/at/all"], ["/nowhere/at/all"]),
    "empty folder": (["--config.data.source=folder:{empty}"], ["{empty}"]),
    "unknown source": (["--config.data.source=digit"], ["digit"]),
    "unknown objective": (["--config.method.objective=mapeet"], ["did you mean mapet?"]),
    "unknown variant": (["--config.model.variant=xxl"], ["variant"]),
    "unknown option": (["--wrkdir=x"], ["did you mean --workdir?"]),
    "no steps": (["--config.schedule.steps=1", "--config.schedule.warmup_steps=2"], ["warmup_steps=2"]),
    "impossible context": (["--config.method.context=17"], ["config.method.context=17"]),
    "mesh": (["--config.mesh.fsdp=3"], ["fsdp=3"]),
    "stray argument": (["demo"], ["demo"]),
}
OTHER_CONFIGS = {
    "unknown preset": (["--config=configs/mapet.py:cifar11"], ["did you mean cifar10?"]),
    "missing config": (["--config=configs/mapett.py"], ["did you mean configs/mapet.py?"]),
    "no config": ([], ["--config"]),
    "missing token cache": (
        [
            "--config=configs/mapet.py:imagenet",
            "--config.data.source=digits",
            "--config.method.tokens=/no/tokens",
        ],
        ["/no/tokens"],
    ),
    "no token cache given": (
        ["--config=configs/mapet.py:imagenet", "--config.data.source=digits"],
        ["config.method.tokens"],
    ),
    "missing tfds": (["--config=configs/mapet.py:cifar10", "--config.data.data_dir={empty}"], ["cifar10"]),
}


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[subprocess.CompletedProcess, list[str]]]:
    empty = tmp_path_factory.mktemp("empty")
    workdir = tmp_path_factory.mktemp("runs") / "never"
    all_cases = {name: (["--config=configs/mapet.py", *args], want) for name, (args, want) in CASES.items()}
    all_cases |= OTHER_CONFIGS

    def run(case: tuple[list[str], list[str]]) -> tuple[subprocess.CompletedProcess, list[str]]:
        args, want = case
        filled = [arg.replace("{empty}", str(empty)) for arg in args]
        command = [sys.executable, "-m", "mim_jax.main", *filled, f"--workdir={workdir}"]
        env = {**os.environ, "XLA_FLAGS": "", "JAX_LOG_COMPILES": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
        return done, [text.replace("{empty}", str(empty)) for text in want]

    with ThreadPoolExecutor(2) as pool:
        done = dict(zip(all_cases, pool.map(run, all_cases.values()), strict=True))
    assert not Path(workdir).exists()
    return done


@pytest.mark.parametrize("name", [*CASES, *OTHER_CONFIGS])
def test_one_sentence(results, name: str) -> None:
    done, wanted = results[name]
    assert done.returncode == 2, (done.returncode, done.stderr[-1500:])
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr[-1500:]
    assert done.stderr.startswith("mim_jax: ")
    for text in wanted:
        assert text in done.stderr, done.stderr
