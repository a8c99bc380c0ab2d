"""A run that goes wrong says where the first number that is none came in, and --replay repeats that very update."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from mim_jax.config.check import ConfigError
from mim_jax.data.views import ArraySpec
from mim_jax.tasks import train
from mim_jax.training.faults import GRADIENTS, VALUES, batch_fault, cause_of, refuse_broken_state
from mim_jax.training.monitoring.monitor import Diverged

RATE = {
    "optim__lr": 1000.0,
    "optim__weight_decay": 1.0,
    "optim__clip_norm": None,
    "optim__ema": 0.0,
    "schedule__steps": 12,
    "checkpoint__every_steps": 1,
    "checkpoint__keep_last": 20,
    "eval__heldout_examples": 0,
}
NAMES = ["a", "b", "c"]
GOOD = {VALUES: np.ones(3, bool), GRADIENTS: np.ones(3, bool)}
BATCH = {
    "image": np.zeros((4, 2, 2, 3), np.uint8),
    "index": np.array([7, 8, 9, 10]),
    "tokens": np.zeros((4, 3), np.int32),
}


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a run that diverged, and what it said."""
    workdir = tmp_path_factory.mktemp("diverged") / "run"
    with pytest.raises(Diverged) as caught:
        train.run(tiny_config(**RATE), workdir)
    return workdir, str(caught.value)


def told_of(workdir: Path) -> tuple[Path, dict[str, Any]]:
    (file,) = workdir.glob("diverged-*.json")
    return file, json.loads(file.read_text())


def test_the_sentence_names_step_parameter_and_file(diverged: tuple[Path, str]) -> None:
    workdir, said = diverged
    file, told = told_of(workdir)
    assert "\n" not in said and said.startswith(f"update {told['step'] + 1} diverged (loss ")
    assert re.search(
        r"the (weights|gradient) of encoder/\S+ (were already not finite before it|is not finite)", said
    )
    assert f"--replay={file}" in said and "lower config.optim.lr" in said
    assert told["parameters"][0] in said and told["cause"] in said
    assert told["seed"] == 0 and told["config"]["optim"]["lr"] == 1000.0
    assert len(told["indices"]) == len(told["draws"]) == 16 and len(set(told["indices"])) == 16


@pytest.mark.parametrize("kept", ["all", "the first", "none"])
def test_replay_repeats_that_very_update(
    diverged: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str
) -> None:
    """From the last checkpoint before it, from an earlier one, and from the beginning: the same numbers; nothing is written."""
    workdir = shutil.copytree(diverged[0], tmp_path / "run")
    file, told = told_of(workdir)
    saved = sorted((workdir / "checkpoints").iterdir())
    assert len(saved) == told["step"] and told["step"] >= 2
    for path in {"all": [], "the first": saved[1:], "none": saved}[kept]:
        shutil.rmtree(path)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in workdir.rglob("*"))
    assert train.replay(tiny_config(**RATE), workdir, str(file)) == 0
    said = capsys.readouterr().out
    start = {"all": told["step"], "the first": 1, "none": 0}[kept]
    assert f"update {told['step'] + 1}, from the state after {start}" in said
    assert "as they were" in said and f"cause    {told['cause']}" in said
    table = said[said.index("parameter  ") if "parameter  " in said else 0 :].splitlines()[1:]
    lines = {line.split()[0]: line.split()[1:] for line in table if len(line.split()) == 8}
    assert set(told["parameters"]) <= set(lines) and len(lines) > 20
    values = [name for name, cells in lines.items() if cells[2] != "0"]
    gradients = [name for name, cells in lines.items() if cells[5] != "0"]
    assert told["parameters"] == (values or gradients)
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in workdir.rglob("*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda told: told.update(indices=told["indices"][::-1]), "other examples"),
        (lambda told: told["config"]["optim"].update(lr=1.0), "config.optim.lr: 1.0 -> 1000"),
        (lambda told: told.update(format="other"), "its format is 'other'"),
        (lambda told: told.update(step="two"), 'step is "two", not a whole number'),
        (lambda told: told.update(loss="low"), "loss is 'low'"),
        (lambda told: told.pop("indices"), "lacks indices"),
    ],
)
def test_a_file_that_is_of_something_else(
    diverged: tuple[Path, str], tmp_path: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    told = told_of(diverged[0])[1]
    change(told)
    (tmp_path / "told.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=re.escape(says)):
        train.replay(tiny_config(**RATE), diverged[0], str(tmp_path / "told.json"))


KEYS = {"tokens": ArraySpec((3,), "int32", below=16)}


@pytest.mark.parametrize(
    ("batch", "flags", "artefacts", "says", "remedy"),
    [
        (
            {"attention": np.array([[1.0], [1.0], [np.nan], [1.0]])}, {GRADIENTS: np.zeros(3, bool)}, {},
            "the batch holds values of attention that are not finite, of example 9", "data",
        ),
        (
            {"tokens": np.array([[0, 1, 2], [0, 16, 2], [0, 0, 0], [0, 0, 0]])}, {}, {},
            "the value 16 of tokens of example 8, which is not in 0..15", "data",
        ),
        ({}, {}, {"centroids": jnp.array([1.0, jnp.inf])}, "the artefacts centroids are not finite", "start anew"),
        (
            {}, {VALUES: np.array([True, False, False]), GRADIENTS: np.zeros(3, bool)}, {},
            "the weights of b were already not finite before it, the first of 2 of 3 parameters", "optim.lr",
        ),
        ({}, {GRADIENTS: np.array([True, True, False])}, {}, "the gradient of c is not finite, the first of 1 of 3", "optim.lr"),
        ({}, {}, {"centroids": jnp.ones(2)}, "their sum is not", "optim.lr"),
    ],
)  # fmt: skip
def test_what_came_first(batch: dict, flags: dict, artefacts: dict, says: str, remedy: str) -> None:
    found = cause_of(NAMES, GOOD | flags, BATCH | batch, artefacts, KEYS if "tokens" in batch else {})
    assert says in found.said and remedy in found.remedy


def test_a_good_batch_has_no_fault() -> None:
    assert (
        batch_fault(BATCH | {"tokens": np.array([[0, 15]] * 4)}, KEYS) == ""
        and batch_fault({"index": BATCH["index"], "box": np.ones((4, 4), np.float32)}, {}) == ""
    )


def test_a_state_that_is_broken_is_refused_before_training() -> None:
    good = {"encoder": {"kernel": jnp.ones(3)}}
    refuse_broken_state(good, {"bank": jnp.ones(2), "counts": jnp.ones(2, jnp.int32)})
    with pytest.raises(ConfigError, match=r"not finite, in params/encoder/kernel: restore"):
        refuse_broken_state({"encoder": {"kernel": jnp.array([1.0, jnp.nan])}}, {})
    with pytest.raises(ConfigError, match=r"not finite, in artefacts/bank"):
        refuse_broken_state(good, {"bank": jnp.array([jnp.inf])})
