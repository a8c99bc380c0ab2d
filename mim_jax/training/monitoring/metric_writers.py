"""Where metrics go: metrics.jsonl, sessions.json, TensorBoard, Weights & Biases; and the readers of the first two.

Each is a clu MetricWriter. Only the first process writes.
"""

import contextlib
import importlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils.epath import Path
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mim_jax.config.check import ConfigError, to_dict
from mim_jax.config.schema import Config
from mim_jax.progress import log
from mim_jax.reading import (
    Unreadable,
    listed,
    mapping,
    number,
    parse_json,
    read_bytes,
    read_json,
    record,
    text,
    whole,
)
from mim_jax.storage import is_bucket, make_directory, open_to_append, write_json, write_text
from mim_jax.training.monitoring.clu_writers import MetricWriter, MultiWriter, ScalarWriter
from mim_jax.training.monitoring.goodput import WallTime

UNIX_TIME = "perf/unix_time"
"""Key of the time a line was written, seconds since 1970."""
MAX_LOG_BYTES = 1 << 30
"""Of a metrics.jsonl that is read."""
UPLOAD_SECONDS = 10.0
"""Between two uploads of a metrics.jsonl in a bucket: a kill loses at most so much of it."""
SESSIONS = "sessions.json"
SESSION_SECONDS = 5.0
"""Between two updates of sessions.json: at most so much of a killed session is not counted."""
FLUSH_SECONDS = 5
"""A watching TensorBoard is at most so far behind; what a kill loses comes back from metrics.jsonl."""

_RECORD = record({"step": whole(0, 2**53)}, others=number())
_SESSION_RECORDS = listed(
    record(
        {"seconds": number(0.0, 1e12)},
        {
            "started": number(0.0),
            "first_step": whole(0),
            "last_step": whole(0),
            "parts": mapping(number(0.0)),
        },
    )
)


class _StampedMultiWriter(MultiWriter):
    """Several writers as one, which get the time with the scalars."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        super().write_scalars(step, {**scalars, UNIX_TIME: time.time()})


@contextlib.contextmanager
def open_metric_writer(
    config: Config, workdir: Path, first_step: int, wall_time: WallTime
) -> Iterator[MetricWriter]:
    """What the configuration asks for, on the first process; nothing on the others: a run has one history.

    Args:
        first_step: updates already done; what was logged after them is taken back, it will be logged again.
        wall_time: of this session; kept in sessions.json.
    """
    writers: list[MetricWriter] = []
    if jax.process_index() == 0:
        json_lines = JsonLinesWriter(workdir / "metrics.jsonl", first_step=first_step)
        writers += [json_lines, SessionTimer(workdir, first_step=first_step, wall_time=wall_time)]
        if config.log.tensorboard and is_bucket(workdir):
            log(
                "no TensorBoard events: their files grow line by line, which a bucket's cannot; metrics.jsonl has all numbers"
            )
        elif config.log.tensorboard:
            make_directory(workdir / "tensorboard")
            writers.append(TensorBoardWriter(workdir / "tensorboard", json_lines.records))
        if config.log.wandb:
            writers.append(WandbWriter(config, workdir))
    writer = _StampedMultiWriter(writers)
    try:
        yield writer
    finally:
        writer.close()


class JsonLinesWriter(ScalarWriter):
    """`metrics.jsonl`: one JSON object a line with `step` (updates done) and flat keys. Only the first host has one.

    On resume the lines after the restored step are cut off: they will be written again, and a run has one history.
    """

    def __init__(self, path: Path, *, first_step: int) -> None:
        earlier = read_metrics(path) if first_step else []  # a run that starts at 0 evaluates step 0 anew
        self.records = [record for record in earlier if record["step"] <= first_step]
        make_directory(path.parent)
        self._path = path
        self._write_all()
        # An object in a bucket cannot grow: it is written whole.
        self._file = None if is_bucket(path) else open_to_append(path)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line; it is on its way to the disk when this returns (to a bucket within UPLOAD_SECONDS)."""
        record = {"step": step, **{key: float(value) for key, value in scalars.items()}}
        self.records.append(record)
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
        elif time.time() - self._written > UPLOAD_SECONDS:
            self._write_all()

    def flush(self) -> None:
        if self._file is None:
            self._write_all()
        elif not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        else:
            self._write_all()

    def _write_all(self) -> None:
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._written = time.time()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a kill cut short is left out.

    Raises:
        ConfigError: it cannot be read, or another line is no record: nothing after it may be lost unseen.
    """
    try:
        lines = read_bytes(path, MAX_LOG_BYTES).splitlines()
    except Unreadable as error:
        if error.absent:
            return []
        raise ConfigError(f"{path} is damaged ({error}): restore it, or move it away") from error
    records: list[dict[str, Any]] = []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            # A metric that is not finite was measured so: it is kept as it is.
            records.append(parse_json(line, _RECORD, finite=False))
        except Unreadable as error:
            if line_number == len(lines) and not line.endswith(b"}"):
                break
            raise ConfigError(
                f"{path} is damaged in line {line_number} ({error}): correct or remove that line, or move the file away"
            ) from error
    return records


class SessionTimer(ScalarWriter):
    """Keeps sessions.json: how long each start of the command ran, over which steps, and where the time went."""

    def __init__(self, workdir: Path, *, first_step: int, wall_time: WallTime) -> None:
        self._path, self._wall_time, self._written = workdir / SESSIONS, wall_time, 0.0
        self._earlier = read_sessions(workdir)
        self._current: dict[str, Any] = {
            "started": wall_time.started,
            "first_step": first_step,
            "last_step": first_step,
        }
        self._write()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._current["last_step"] = step
        if time.time() - self._written > SESSION_SECONDS:
            self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        self._written = time.time()
        self._current |= {
            "seconds": self._written - self._wall_time.started,
            "parts": self._wall_time.seconds,
        }
        write_json(self._path, [*self._earlier, self._current])


def read_sessions(workdir: Path) -> list[dict[str, Any]]:
    """started (seconds since 1970), seconds, first_step and last_step of every session so far."""
    path = workdir / SESSIONS
    try:
        sessions: list[dict[str, Any]] = read_json(path, _SESSION_RECORDS)
    except Unreadable as error:
        if error.absent:
            return []
        raise ConfigError(f"{path} is damaged ({error}): restore it, or move it away") from error
    return sessions


class TensorBoardWriter(ScalarWriter):
    """TensorBoard event files, written by tensorboard's own writer, with the keys of metrics.jsonl.

    The event files are written anew from metrics.jsonl whenever a run starts or resumes. The other way, a session log with
    the step to purge from, leaves the superseded points in the files: TensorBoard hides them, every other reader of event
    files shows them twice. This way the files hold one history by construction, also after a kill that cut an event short,
    and a run that switches log.tensorboard on half-way gets its past, too. The new file still opens with a session log at
    step 0, so that a TensorBoard that is watching drops what it has read.

    Args:
        directory: of the event files; those of earlier sessions are emptied.
        records: what metrics.jsonl holds already.
    """

    def __init__(self, directory: Path, records: Sequence[Mapping[str, Any]]) -> None:
        for old in directory.glob("events.out.tfevents.*"):
            # A TensorBoard that is reading a file never goes on to the next one if it vanishes: empty it, remove it later.
            if os.lstat(old).st_size and not os.path.islink(old):
                os.truncate(old, 0)
            else:
                old.unlink()
        self._writer = EventFileWriter(str(directory), flush_secs=FLUSH_SECONDS)
        first_time = records[0].get(UNIX_TIME, 0.0) if records else time.time()
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=first_time, step=0, session_log=start))
        for line in records:
            self.write_scalars(line["step"], {key: value for key, value in line.items() if key != "step"})

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        values = [
            Summary.Value(tag=key, simple_value=value) for key, value in scalars.items() if key != UNIX_TIME
        ]
        event = Event(wall_time=scalars.get(UNIX_TIME, 0.0), step=step, summary=Summary(value=values))
        self._writer.add_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def import_wandb(config: Config) -> Any:
    """The module; None where the configuration does not ask for it. ConfigError where it is not installed."""
    if not config.log.wandb:
        return None
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            f"config.log.wandb={config.log.wandb} needs the package wandb, which cannot be imported here"
            f" ({error}): pip install wandb, or leave config.log.wandb empty"
        ) from error


def run_id(workdir: Path) -> str:
    """The id of this run at W&B, made once and kept in the work directory: a resumed run is the same run there."""
    path = workdir / "wandb.json"
    if not os.path.lexists(path):
        write_json(path, {"id": secrets.token_hex(4)})
    try:
        found = str(read_json(path, record({"id": text(128)}))["id"])
    except Unreadable as error:
        raise ConfigError(
            f"{path} is damaged ({error}): restore it, or remove it to start another run at W&B"
        ) from error
    if not re.fullmatch(r"[\w-]+", found):
        raise ConfigError(
            f"{path} is damaged (the id {found!r} is not of letters and digits): restore it, or remove it"
        )
    return found


class WandbWriter(ScalarWriter):
    """Weights & Biases, where config.log.wandb names a project. What it has already had before a kill is the same now, and is not sent twice."""

    def __init__(self, config: Config, workdir: Path) -> None:
        wandb = import_wandb(config)
        try:
            self._run = wandb.init(
                project=config.log.wandb,
                id=run_id(workdir),
                resume="allow",
                name=workdir.name,
                dir=None if is_bucket(workdir) else str(workdir),
                config=to_dict(config),
                allow_val_change=True,  # keys that cannot change the result may differ in a resumed run
            )
        except Exception as error:  # no account, no network: whatever it is, it is W&B's own
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"config.log.wandb={config.log.wandb}: W&B did not start ({reason}); WANDB_MODE=offline logs without"
                " an account"
            ) from error
        self._first_new_step = int(self._run.step)  # W&B refuses steps before its newest

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        if step >= self._first_new_step:
            self._run.log({key: value for key, value in scalars.items() if key != UNIX_TIME}, step=step)

    def close(self) -> None:
        self._run.finish()
