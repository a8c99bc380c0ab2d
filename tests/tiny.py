"""A tiny whole run in this process: MaPeT on digits, seconds, with a result table, a picture and a report."""

import runpy
from pathlib import Path
from typing import Any

from mim_jax.config.check import check
from mim_jax.config.schema import Config
from mim_jax.tasks import train

STEPS = 6
OPTIONS: dict[str, Any] = {
    "model.variant": "mu",
    "schedule.steps": STEPS,
    "schedule.warmup_steps": 1,
    "data.batch_size": 16,
    "method.vocabulary": 16,
    "method.kmeans_patches": 2000,
    "checkpoint.every_steps": 3,
    "eval.every_steps": 100,
    "eval.heldout_examples": 32,
    "eval.baselines": False,
    "eval.knn": False,
    "log.every_steps": 1,
    "optim.ema": 0.5,
}


def tiny_config(**more: Any) -> Config:
    """The configuration of the run, checked; further keys as section__key."""
    config = runpy.run_path("configs/mapet.py")["get_config"]()
    for key, value in {**OPTIONS, **{k.replace("__", "."): v for k, v in more.items()}}.items():
        section, _, name = key.rpartition(".")
        config[section][name] = value
    return check(config)


def tiny_run(workdir: Path, **more: Any) -> int:
    """Runs or resumes it; the exit code."""
    return train.run(tiny_config(**more), workdir)
