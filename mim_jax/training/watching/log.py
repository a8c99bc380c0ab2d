"""What a run says: metrics.jsonl for plots, a line on the console for people."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils.epath import Path
from tqdm import tqdm

from mim_jax.config.check import ConfigError
from mim_jax.progress import Estimate, clock
from mim_jax.reading import Unreadable, number, parse_json, read_bytes, record, whole
from mim_jax.storage import is_bucket, make_directory, open_to_append, write_text
from mim_jax.transfer.metrics import STANDARD_ERROR

UNIX_TIME = "perf/unix_time"
"""Key of the time a line was written, seconds since 1970."""

ASIDE = ("_seconds", STANDARD_ERROR)
"""Endings of metrics that people are not shown: they are about a result, and not one."""

MOST = 1 << 30
"""Bytes of a metrics.jsonl."""
_RECORD = record({"step": whole(0, 2**53)}, others=number())


UPLOAD_SECONDS = 10.0
"""Between two uploads of a metrics.jsonl in a bucket: a kill loses at most so much of it."""


class MetricLog:
    """`metrics.jsonl`: one JSON object a line with `step` (updates done) and flat keys. Only the first host has one.

    On resume the lines after the restored step are cut off: they will be written again, and a run has one history.
    """

    def __init__(self, path: Path, *, first_step: int) -> None:
        kept = read_metrics(path) if first_step else []  # a run that starts at 0 evaluates step 0 anew
        self.records = [record for record in kept if record["step"] <= first_step]
        make_directory(path.parent)
        self._path = path
        self._write_all()
        self._file = (
            None if is_bucket(path) else open_to_append(path)
        )  # an object in a bucket is written whole

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line; it is on its way to the disk when this returns (to a bucket within UPLOAD_SECONDS)."""
        record = {"step": step, **{key: float(value) for key, value in values.items()}}
        self.records.append(record)
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
        elif time.time() - self._written > UPLOAD_SECONDS:
            self._write_all()

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
        lines = read_bytes(path, MOST).splitlines()
    except Unreadable as error:
        if error.absent:
            return []
        raise ConfigError(f"{path} is damaged ({error}): restore it, or move it away") from error
    records: list[dict[str, Any]] = []
    for number_of, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            # A metric that is not finite was measured so: it is kept as it is.
            records.append(parse_json(line, _RECORD, finite=False))
        except Unreadable as error:
            if number_of == len(lines) and not line.endswith(b"}"):
                break
            raise ConfigError(
                f"{path} is damaged in line {number_of} ({error}): correct or remove that line, or move the file away"
            ) from error
    return records


def say(text: str) -> None:
    """A line for people, from the first host only; above the progress bar, where there is one."""
    if jax.process_index() == 0:
        tqdm.write(text.encode("utf-8", "backslashreplace").decode())  # a path may hold other bytes
        sys.stdout.flush()


class Clock:
    """Speed and remaining time; evaluations and saves do not count as training.

    The speed is that of the last lap, the remaining time that of a moving average of laps. The first lap, which holds the
    compilation, is no speed to judge the rest by.
    """

    def __init__(self, *, first_step: int, total_steps: int, batch_size: int) -> None:
        self.total, self.batch_size = total_steps, batch_size
        self._seconds, self._started = 0.0, 0.0
        self._last_seconds, self._last_step, self._last_stall = 0.0, first_step, 0.0
        self._first_step, self._estimate = first_step, Estimate()

    def start(self) -> None:
        self._started = time.perf_counter()

    def pause(self) -> None:
        self._seconds += time.perf_counter() - self._started

    def lap(self, done: int, stall_seconds: float) -> dict[str, float]:
        """Speed since the last lap, as metrics.

        Args:
            done: updates that are known to be finished.
            stall_seconds: total time spent waiting for data so far.
        """
        self.pause()
        self.start()
        seconds = max(self._seconds - self._last_seconds, 1e-9)
        updates, stall = done - self._last_step, stall_seconds - self._last_stall
        if self._last_step > self._first_step:
            self._estimate.lap(updates, seconds)
        self._last_seconds, self._last_step, self._last_stall = self._seconds, done, stall_seconds
        metrics = {
            "perf/images_per_sec": updates / seconds * self.batch_size,
            "perf/input_stall": min(1.0, stall / seconds),
        }
        left = self._estimate.seconds_for(self.total - done)
        return metrics if left is None else {**metrics, "perf/seconds_left": left}


def progress_line(step: int, total: int, values: Mapping[str, float]) -> str:
    """The console's line for one log step."""
    left = f"  left {clock(values['perf/seconds_left'])}" if "perf/seconds_left" in values else ""
    mfu = f"  MFU {100 * values['perf/mfu']:.0f} %" if "perf/mfu" in values else ""
    return (
        f"step {step:>{len(str(total))}}/{total} {100 * step // total:3d} %  loss {values['train/loss']:.4f}"
        f"  lr {values['train/lr']:.2e}  {values['perf/images_per_sec']:.0f} images/s{mfu}"
        f"  input stall {100 * values['perf/input_stall']:.0f} %{left}"
    )
