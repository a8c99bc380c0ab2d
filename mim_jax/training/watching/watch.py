"""Looking at the metrics of a run while it goes on: numbers that are none, lines that are due."""

import collections
import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import jax

from mim_jax.config.schema import Config, resolved
from mim_jax.data import Loader
from mim_jax.training.faults import FLAGS
from mim_jax.training.watching.log import Clock, progress_line, say
from mim_jax.training.watching.peak import peak_flops, peak_memory
from mim_jax.training.watching.progress import Bar
from mim_jax.training.watching.sinks import Sink
from mim_jax.training.watching.table import in_a_line

LAG = 2
"""Updates in flight before the metrics of the oldest are looked at: the device never waits for the host to look."""


class Diverged(RuntimeError):
    """The loss or the gradient is not a number; the message names the step and the last good checkpoint."""


Explain = Callable[[int, dict[str, float], Mapping[str, Any], str], Diverged]
"""(updates done, metrics, flags of `faults`, which checkpoint is good) -> the error to raise."""


class Watch:
    """Sees every update's metrics, in order and a little late. A context manager: it owns the progress bar.

    explain: makes the error of an update that went wrong. last_saved: step of the newest checkpoint. flops: model FLOPs of a training image, for MFU; 0 = not known yet.
    """

    def __init__(
        self,
        config: Config,
        sink: Sink,
        loader: Loader,
        first_step: int,
        last_saved: int | None,
        explain: Explain,
    ) -> None:
        self._explain = explain
        self.last_saved, self.flops = last_saved, 0.0
        self._total, self._every = resolved(config.schedule.steps), resolved(config.log.every_steps)
        self._first, self._loader = first_step, loader
        self._sink, self._bar = sink, Bar(first_step, self._total)
        peak = peak_flops(jax.devices()[0].device_kind, config.model.dtype)
        self._peak = None if peak is None else peak * jax.device_count()
        self.clock = Clock(first_step=first_step, total_steps=self._total, batch_size=config.data.batch_size)
        self._waiting: collections.deque[tuple[int, Any]] = collections.deque()

    def update(self, done: int, metrics: Any, *, look_at_all: bool) -> None:
        """Takes the metrics (still on the device) of the update that made `done`.

        Raises:
            Diverged: at the first update looked at whose loss or gradient is not finite.
        """
        self._waiting.append((done, metrics))
        while len(self._waiting) > (0 if look_at_all else LAG):
            self._look(*self._waiting.popleft())

    def passed(self, done: int, values: dict[str, float]) -> None:
        """Logs what passes between two steps took; they have said so themselves."""
        self._sink.write(done, values)

    def evaluated(self, done: int, values: dict[str, float]) -> None:
        """Logs the results of an evaluation."""
        if not values:
            return
        self._sink.write(done, values)
        say(f"eval at step {done}: {in_a_line(values)}")

    def _look(self, done: int, metrics: Any) -> None:
        flags = {name: value for name, value in metrics.items() if name in FLAGS}
        values = {f"train/{name}": float(value) for name, value in metrics.items() if name not in FLAGS}
        if not all(math.isfinite(values[key]) for key in ("train/loss", "train/grad_norm")):
            kept = (
                "there is no checkpoint yet"
                if self.last_saved is None
                else f"checkpoint {self.last_saved} is good"
            )
            raise self._explain(done, values, flags, kept)
        self._bar.update(done, values["train/loss"])
        if done % self._every == 0 or done in (self._total, self._first + 1):
            values |= self.clock.lap(done, self._loader.stall_seconds)
            values["perf/gflops_per_image"] = self.flops / 1e9
            values["perf/peak_memory_mib"] = peak_memory() / 2**20
            if self._peak and self.flops:
                values["perf/mfu"] = self.flops * values["perf/images_per_sec"] / self._peak
            self._sink.write(done, values)
            say(progress_line(done, self._total, values))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
