"""A diverged update, kept so that it can be repeated: <workdir>/diverged-STEP.json, and what it says."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils.epath import Path

from mim_jax.config.check import ConfigError, to_dict
from mim_jax.config.schema import Config
from mim_jax.data import Loader
from mim_jax.reading import Unreadable, listed, mapping, read_json, record, text, whole
from mim_jax.storage import write_json
from mim_jax.training.faults import cause_of
from mim_jax.training.monitoring.monitor import Diverged

FORMAT = "mim_jax diverged 1"
PATTERN = "diverged-*.json"
_SHAPE = record(
    {
        "format": text(64),
        "step": whole(0),
        "seed": whole(0),
        "indices": listed(whole(0), shortest=1),
        "draws": listed(whole(0), shortest=1),
        "loss": text(64),
        "gradient_norm": text(64),
        "cause": text(),
        "parameters": listed(text()),
        "config": mapping(),
    }
)


def explained(
    config: Config,
    loader: Loader,
    workdir: Path,
    names: list[str],
    artefacts: Callable[[], Mapping[str, Any]],
) -> Callable[[int, dict[str, float], Mapping[str, Any], str], Diverged]:
    """What makes the error of an update that went wrong, and its file.

    Args:
        names: of the parameters, in the tree's order.
        artefacts: those of the state now: by the time metrics are looked at, the state of that update is given up.
    """

    def explain(done: int, values: dict[str, float], flags: Mapping[str, Any], kept: str) -> Diverged:
        step = done - 1
        batch = loader.batch(step)  # a function of the step: what the update was given
        cause = cause_of(names, flags, batch, artefacts(), loader.view.keys)
        file = workdir / f"diverged-{step}.json"
        loss, norm = values["train/loss"], values["train/grad_norm"]
        if jax.process_index() == 0:
            epochs, indices = loader.examples(step)
            told = {
                "format": FORMAT,
                "step": step,
                "seed": config.seed,
                "indices": indices.tolist(),
                "draws": epochs.tolist(),
                "loss": repr(loss),  # JSON has no NaN
                "gradient_norm": repr(norm),
                "cause": cause.said,
                "parameters": list(cause.groups),
                "config": to_dict(config),
            }
            write_json(file, told)
        return Diverged(
            f"update {done} diverged (loss {loss:.6g}, gradient norm {norm:.6g}): {cause.said}; {kept}; {cause.remedy}, and start"
            f" again (the same command with --replay={file} repeats that update and prints its statistics)"
        )

    return explain


def read_divergence(path: Path) -> dict[str, Any]:
    """What a diverged-STEP.json says. Raises ConfigError."""
    try:
        told: dict[str, Any] = read_json(path, _SHAPE)
        if told["format"] != FORMAT:
            raise Unreadable(f"its format is {told['format']!r}, not {FORMAT!r}")
        for key in ("loss", "gradient_norm"):
            _as_float(told[key], key)
    except Unreadable as error:
        raise ConfigError(
            f"--replay={path} cannot be used ({error}): name a diverged-STEP.json of this run"
        ) from error
    return told


def _as_float(written: str, name: str) -> float:
    try:
        return float(written)
    except ValueError as error:
        raise Unreadable(f"{name} is {written!r}, no number") from error


def same(written: str, value: float) -> bool:
    """Whether a number is the one that was kept; NaN is NaN."""
    kept = float(written)
    return kept == value or (math.isnan(kept) and math.isnan(value))


def refuse_other_batch(told: Mapping[str, Any], epochs: np.ndarray, indices: np.ndarray) -> None:
    """Raises ConfigError where the batch of that step is another one now."""
    if indices.tolist() != told["indices"] or epochs.tolist() != told["draws"]:
        raise ConfigError(
            f"the batch of step {told['step']} has other examples than the one that diverged: the data set or the seed has changed"
        )
