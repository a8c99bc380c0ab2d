"""What every stage ended with: DIR/results, one JSON file a stage, written whole or not at all."""

import dataclasses
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mim_jax.compare.protocol import WALL_SECONDS
from mim_jax.compare.stages import Stage
from mim_jax.config.check import ConfigError
from mim_jax.storage import make_folder, write_json
from mim_jax.training.watching.log import read_metrics
from mim_jax.training.watching.sessions import read_sessions

RUNNING, DONE, FAILED = "running", "done", "failed"

SPEED = "perf/images_per_sec"
"""The one metric whose last value says less than the median. The first step's is left out: it holds the compilation."""

EPOCHS = "schedule/epochs"
"""Key under which the values hold how many epochs the run was, from its config.json."""


@dataclasses.dataclass(frozen=True)
class Record:
    """The result of a stage, or that it is under way."""

    stage: str
    status: str  # running | done | failed
    command: str
    config: dict[str, Any]  # as the command says, before the run resolves it
    log: str
    pid: int | None = None  # of the process under way
    reason: str = ""  # of the failure
    seconds: float = 0.0  # of the last process
    finished: str = ""
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)


class Records:
    """The results of a comparison by the keys of its stages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_folder(folder)
        self._known = {path.stem: Record(**json.loads(path.read_text())) for path in folder.glob("*.json")}

    def get(self, key: str) -> Record | None:
        return self._known.get(key)

    def is_done(self, key: str) -> bool:
        record = self.get(key)
        return record is not None and record.status == DONE

    def all(self) -> list[Record]:
        return list(self._known.values())

    def put(self, stage: Stage, status: str, **fields: Any) -> None:
        """Keeps what is known of a stage now; it is on the disk when this returns."""
        record = Record(
            stage=stage.name,
            status=status,
            command=stage.command(),
            config=_as_json(stage.job.config),
            log=str(stage.log),
            **fields,
        )
        write_json(self._folder / f"{stage.key}.json", dataclasses.asdict(record))
        self._known[stage.key] = record

    def refuse_others(self, stages: Iterable[Stage]) -> None:
        """Raises ConfigError where a finished or interrupted stage had other settings than it has now.

        A failed one may have new settings: it has no result that they could be mixed with.
        """
        for stage in stages:
            record = self.get(stage.key)
            if record is None or record.status == FAILED:
                continue
            now = _as_json(stage.job.config)
            changed = [
                f"{key}: {value!r} -> {now.get(key)!r}"
                for key, value in record.config.items()
                if now.get(key) != value
            ]
            if changed:
                raise ConfigError(
                    f"{stage.title} was run with other settings (config.{', config.'.join(changed)}): give --workdir"
                    " another directory"
                )


def end_of(stage: Stage) -> dict[str, Any]:
    """The values and versions of a run that ended well, from its directory."""
    values: dict[str, float] = {}
    lines = read_metrics(stage.workdir / "metrics.jsonl")
    for line in lines:
        values |= line
    values.pop(SPEED, None)
    if speeds := [line[SPEED] for line in lines if SPEED in line and line["step"] > 1]:
        values[SPEED] = statistics.median(speeds)
    if sessions := read_sessions(stage.workdir):
        values[WALL_SECONDS] = sum(session["seconds"] for session in sessions)
    config = _read(stage.workdir / "config.json")
    if epochs := config.get("schedule", {}).get("epochs"):
        values[EPOCHS] = epochs
    return {"values": values, "versions": _read(stage.workdir / "versions.json"), "finished": now()}


def now() -> str:
    """The date and time, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dict(config))))
