"""TensorBoard event files, written by tensorboard's own writer (clu's reach for TensorFlow).

The event files are written anew from metrics.jsonl whenever a run starts or resumes. The other way, a session log with
the step to purge from, leaves the superseded points in the files: TensorBoard hides them, every other reader of event
files shows them twice. This way the files hold one history by construction, also after a kill that cut an event short,
and a run that switches log.tensorboard on half-way gets its past, too. The new file still opens with a session log at
step 0, so that a TensorBoard that is watching drops what it has read.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils.epath import Path
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mim_jax.training.watching.log import UNIX_TIME

FLUSH_SECONDS = 5
"""A watching TensorBoard is at most so far behind; what a kill loses comes back from metrics.jsonl."""


class TensorBoardSink:
    """Scalars under the keys of metrics.jsonl.

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
        first = records[0].get(UNIX_TIME, 0.0) if records else time.time()
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=first, step=0, session_log=start))
        for record in records:
            self.write(record["step"], {key: value for key, value in record.items() if key != "step"})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [
            Summary.Value(tag=key, simple_value=value) for key, value in values.items() if key != UNIX_TIME
        ]
        event = Event(wall_time=values.get(UNIX_TIME, 0.0), step=step, summary=Summary(value=scalars))
        self._writer.add_event(event)

    def close(self) -> None:
        self._writer.close()
