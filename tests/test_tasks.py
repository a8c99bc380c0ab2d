"""Every config and task trains a few steps, stops, resumes, and ends as if it had not stopped."""

from pathlib import Path

import pytest
from test_resume import history

from mim_jax import pretrain
from mim_jax.config.check import check
from mim_jax.config.files import load, override

TINY = {
    "model.variant": "mu", "data.batch_size": 16, "data.crops_per_picture": 8, "schedule.steps": 4,
    "schedule.warmup_steps": 1, "checkpoint.every_steps": 100, "eval.every_steps": 100, "eval.heldout_examples": 16,
    "eval.baselines": False, "log.every_steps": 1, "log.tensorboard": False,
}  # fmt: skip
RUNS = ["mae", "simmim", "beit,method.vocabulary=16,method.kmeans_patches=2000"] + [
    f"beyond_masking,method.task={task}"
    for task in (
        "mask",
        "zoom_in",
        "zoom_out",
        "distort",
        "blur",
        "decolorize",
        "zoom_in+mask",
        "distort+blur+mask",
    )
]


def run(spec: str, workdir: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch) -> int:
    name, *pairs = spec.split(",")
    config = check(override(load(",".join([f"configs/{name}.py", *pairs])), TINY))
    monkeypatch.setattr(pretrain.Shutdown, "requested_at", lambda self, step: step >= stop_after)
    return pretrain.run(config, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("spec", RUNS)
def test_trains_and_resumes(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(spec, tmp_path / "whole", 100, monkeypatch) == 0
    assert run(spec, tmp_path / "parts", 2, monkeypatch) == 75
    assert run(spec, tmp_path / "parts", 100, monkeypatch) == 0
    whole = history(tmp_path / "whole")
    assert history(tmp_path / "parts") == whole
    assert [line["step"] for line in whole if "train/loss" in line] == [1, 2, 3, 4]
    assert (tmp_path / "parts" / "report.html").stat().st_size > 20_000
