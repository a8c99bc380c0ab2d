"""What users get wrong: each one sentence on stderr, a non-zero exit, nothing compiled, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mim_jax import main

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
        ["batch_size=50", "64"],
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


ALL = {name: (["--config=configs/mapet.py", *args], want) for name, (args, want) in CASES.items()}
ALL |= OTHER_CONFIGS
PROCESSES = ("unknown key", "missing folder", "no config")
"""Tried as a user does, in a process of their own: nothing but the sentence is printed, and nothing compiled."""


def check_sentence(code: int, stderr: str, wanted: list[str]) -> None:
    assert code == 2, (code, stderr[-1500:])
    assert len(stderr.strip().splitlines()) == 1, stderr[-1500:]
    assert stderr.startswith("mim_jax: ")
    for text in wanted:
        assert text in stderr, stderr


@pytest.mark.parametrize("name", ALL)
def test_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    arguments, wanted = (
        [text.replace("{empty}", str(tmp_path / "empty")) for text in part] for part in ALL[name]
    )
    code = main.run([*arguments, f"--workdir={tmp_path / 'never'}"])
    check_sentence(code, capsys.readouterr().err, wanted)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_one_sentence_of_a_process(name: str, tmp_path: Path) -> None:
    arguments, wanted = ALL[name]
    command = [sys.executable, "-m", "mim_jax.main", *arguments, f"--workdir={tmp_path / 'never'}"]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_LOG_COMPILES": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
    check_sentence(done.returncode, done.stderr, wanted)
    assert not (tmp_path / "never").exists()
