"""Results of stages: DIR/results, one JSON file per stage, written atomically; and what a finished run left behind."""

import dataclasses
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mim_jax.compare.config import WALL_SECONDS
from mim_jax.compare.stages import Stage
from mim_jax.config.check import ConfigError
from mim_jax.reading import Shape, Unreadable, mapping, number, read_json, record, text, whole
from mim_jax.storage import make_directory, write_json
from mim_jax.training.monitoring.metric_writers import read_metrics, read_sessions
from mim_jax.transfer.per_image import decode_correct, read_correct

RUNNING, DONE, FAILED = "running", "done", "failed"

SPEED = "perf/images_per_sec"
"""Summarised by its median over the run, without the first step, which holds the compilation."""

EPOCHS = "schedule/epochs"
"""Key under which a result's values hold the length of the run, from its config.json."""


@dataclasses.dataclass(frozen=True)
class StageResult:
    """The result of a stage, or that it is running.

    correct: metric -> a digit per test image, 1 = classified correctly.
    """

    stage: str
    status: str  # running | done | failed
    command: str
    config: dict[str, Any]  # as the command says, before the run resolves it
    log: str
    pid: int | None = None  # while it runs
    reason: str = ""  # of the failure
    seconds: float = 0.0  # of the last process
    finished: str = ""
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    correct: dict[str, str] = dataclasses.field(default_factory=dict)

    def correct_images(self, metric: str) -> npt.NDArray[np.bool_] | None:
        """Whether each test image was classified correctly, [N]; None where the run kept no results per image."""
        return decode_correct(self.correct[metric]) if metric in self.correct else None


_RESULT = record(
    {"stage": text(), "status": text(), "command": text(), "config": mapping(), "log": text()},
    {
        "pid": lambda value, name: None if value is None else whole(1, 2**31)(value, name),
        "reason": text(),
        "seconds": number(0.0),
        "finished": text(),
        "values": mapping(number()),
        "versions": mapping(text()),
        "correct": mapping(text(1 << 26)),
    },
)
_RUN_CONFIG = record({}, {"schedule": record({}, {"epochs": number(0.0)})})


class ResultStore:
    """The results of a comparison by the keys of its stages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_directory(folder)
        self._results = {path.stem: _read_result(path) for path in sorted(folder.glob("*.json"))}

    def get(self, key: str) -> StageResult | None:
        return self._results.get(key)

    def is_done(self, key: str) -> bool:
        result = self.get(key)
        return result is not None and result.status == DONE

    def all(self) -> list[StageResult]:
        return list(self._results.values())

    def put(self, stage: Stage, status: str, **fields: Any) -> None:
        """Stores a stage's state; it is on the disk when this returns."""
        result = StageResult(
            stage=stage.name,
            status=status,
            command=stage.command(),
            config=_as_json(stage.run.config),
            log=str(stage.log),
            **fields,
        )
        write_json(self._folder / f"{stage.key}.json", dataclasses.asdict(result))
        self._results[stage.key] = result

    def check_same_settings(self, stages: Iterable[Stage]) -> None:
        """Failed stages may change their settings: they have no result that could be mixed with others.

        Raises:
            ConfigError: a finished or interrupted stage had other settings than it has now.
        """
        for stage in stages:
            result = self.get(stage.key)
            if result is None or result.status == FAILED:
                continue
            config = _as_json(stage.run.config)
            changed = [
                f"{key}: {value!r} -> {config.get(key)!r}"
                for key, value in result.config.items()
                if config.get(key) != value
            ]
            if changed:
                raise ConfigError(
                    f"{stage.title} was run with other settings (config.{', config.'.join(changed)}): give --workdir"
                    " another directory"
                )


def read_run(stage: Stage) -> dict[str, Any]:
    """Fields of the result of a run that exited with 0: values, versions, correct, finished.

    Raises:
        ConfigError: a file of the run is damaged, or the run logged nothing or lacks a metric that the stage is for.
    """
    values: dict[str, float] = {}
    lines = read_metrics(stage.workdir / "metrics.jsonl")
    for line in lines:
        values |= line
    values.pop(SPEED, None)
    if speeds := [line[SPEED] for line in lines if SPEED in line and line["step"] > 1]:
        values[SPEED] = statistics.median(speeds)
    if sessions := read_sessions(stage.workdir):
        values[WALL_SECONDS] = sum(session["seconds"] for session in sessions)
    if epochs := _read_optional(stage.workdir / "config.json", _RUN_CONFIG).get("schedule", {}).get("epochs"):
        values[EPOCHS] = epochs
    if not values:
        raise ConfigError("exit 0, but without metrics")
    if missing := [key for key in stage.required if key not in values]:
        raise ConfigError(f"exit 0, but without {' and '.join(missing)}")
    return {
        "values": values,
        "versions": _read_optional(stage.workdir / "versions.json", mapping(text())),
        "correct": read_correct(stage.workdir),
        "finished": timestamp(),
    }


def timestamp() -> str:
    """The date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _read_optional(path: Path, shape: Shape) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path, shape)
    except Unreadable as error:
        if error.absent:
            return {}
        raise ConfigError(f"{path} is damaged ({error}): restore it, or train anew") from error
    return content


def _read_result(path: Path) -> StageResult:
    try:
        content = read_json(path, _RESULT, finite=False)  # a metric may have been NaN
        if unknown := sorted({*content} - {field.name for field in dataclasses.fields(StageResult)}):
            raise Unreadable(f"it has the unknown key {unknown[0]!r}")
        if content["status"] not in (RUNNING, DONE, FAILED):
            raise Unreadable(f"status is {content['status']!r}, not {RUNNING}, {DONE} or {FAILED}")
    except Unreadable as error:
        raise ConfigError(
            f"the result {path} is damaged ({error}): restore it, or move it away to run that stage again"
        ) from error
    return StageResult(**content)


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dict(config))))
