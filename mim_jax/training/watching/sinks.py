"""Where metrics go: metrics.jsonl, TensorBoard, Weights & Biases. One kind of thing, opened in one place."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import jax
from etils.epath import Path

from mim_jax.config.schema import Config
from mim_jax.storage import is_bucket, make_directory
from mim_jax.training.watching.log import UNIX_TIME, MetricLog, say
from mim_jax.training.watching.sessions import Session
from mim_jax.training.watching.tensorboard_sink import TensorBoardSink
from mim_jax.training.watching.wandb_sink import WandbSink


class Sink(Protocol):
    """Takes metrics: flat keys -> numbers, at a step (updates done)."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Sinks:
    """Several as one. A context manager; it stamps what it passes on with the time."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        stamped = {**values, UNIX_TIME: time.time()}
        for sink in self._sinks:
            sink.write(step, stamped)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_sinks(config: Config, workdir: Path, first_step: int, started: float) -> Sinks:
    """What the configuration asks for, on the first process; nothing on the others: a run has one history.

    Args:
        first_step: updates already done; what was logged after them is taken back, it will be logged again.
        started: when this session began, seconds since 1970.
    """
    if jax.process_index() != 0:
        return Sinks([])
    log = MetricLog(workdir / "metrics.jsonl", first_step=first_step)
    sinks: list[Sink] = [log, Session(workdir, first_step=first_step, started=started)]
    if config.log.tensorboard and is_bucket(workdir):
        say(
            "no TensorBoard events: their files grow line by line, which a bucket's cannot; metrics.jsonl has all numbers"
        )
    elif config.log.tensorboard:
        make_directory(workdir / "tensorboard")
        sinks.append(TensorBoardSink(workdir / "tensorboard", log.records))
    if config.log.wandb:
        sinks.append(WandbSink(config, workdir))
    return Sinks(sinks)
