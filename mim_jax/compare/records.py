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
from mim_jax.reading import Shape, Unreadable, mapping, number, read_json, record, text, whole
from mim_jax.storage import make_directory, write_json
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


_RECORD = record(
    {"stage": text(), "status": text(), "command": text(), "config": mapping(), "log": text()},
    {
        "pid": lambda value, name: None if value is None else whole(1, 2**31)(value, name),
        "reason": text(),
        "seconds": number(0.0),
        "finished": text(),
        "values": mapping(number()),
        "versions": mapping(text()),
    },
)
_EPOCHS = record({}, {"schedule": record({}, {"epochs": number(0.0)})})


class Records:
    """The results of a comparison by the keys of its stages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_directory(folder)
        self._known = {path.stem: _record(path) for path in sorted(folder.glob("*.json"))}

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
    config = _read(stage.workdir / "config.json", _EPOCHS)
    if epochs := config.get("schedule", {}).get("epochs"):
        values[EPOCHS] = epochs
    return {
        "values": values,
        "versions": _read(stage.workdir / "versions.json", mapping(text())),
        "finished": now(),
    }


def now() -> str:
    """The date and time, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _read(path: Path, shape: Shape) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        found = read_json(path, shape)
    except Unreadable as error:
        if not error.absent:
            raise ConfigError(f"{path} is damaged ({error}): restore it, or train anew") from error
    return found


def _record(path: Path) -> Record:
    try:
        found = read_json(path, _RECORD, finite=False)  # a metric may have been NaN
        if unknown := sorted({*found} - {field.name for field in dataclasses.fields(Record)}):
            raise Unreadable(f"it has the unknown key {unknown[0]!r}")
        if found["status"] not in (RUNNING, DONE, FAILED):
            raise Unreadable(f"status is {found['status']!r}, not {RUNNING}, {DONE} or {FAILED}")
    except Unreadable as error:
        raise ConfigError(
            f"the result {path} is damaged ({error}): restore it, or move it away to run that stage again"
        ) from error
    return Record(**found)


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(dict(config))))
