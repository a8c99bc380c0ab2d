"""The metrics of a run while it goes on: numbers that are not finite, speed, the lines and the bar on the console."""

import collections
import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import jax
from tqdm import tqdm

from mim_jax.config.schema import Config, resolved
from mim_jax.data import Loader
from mim_jax.progress import Estimate, format_duration, log
from mim_jax.training.faults import FLAGS
from mim_jax.training.monitoring.clu_writers import MetricWriter
from mim_jax.training.monitoring.goodput import WallTime
from mim_jax.training.monitoring.peak_flops import peak_flops, peak_memory
from mim_jax.training.monitoring.results_table import format_metrics

P = ParamSpec("P")
R = TypeVar("R")

LAG = 2
"""Updates in flight before the metrics of the oldest are looked at: the device never waits for the host to look."""


class Diverged(RuntimeError):
    """The loss or the gradient is not a number; the message names the step and the last good checkpoint."""


Explain = Callable[[int, dict[str, float], Mapping[str, Any], str], Diverged]
"""(updates done, metrics, flags of `faults`, which checkpoint is good) -> the error to raise."""


class MetricMonitor:
    """Sees every update's metrics, in order and a little late. A context manager: it owns the progress bar.

    explain: makes the error of an update that went wrong. last_saved: step of the newest checkpoint. flops: model FLOPs of a training image, for MFU; 0 = not known yet.
    """

    def __init__(
        self,
        config: Config,
        writer: MetricWriter,
        loader: Loader,
        first_step: int,
        last_saved: int | None,
        explain: Explain,
        wall_time: WallTime,
    ) -> None:
        self._explain, self._wall_time = explain, wall_time
        self.last_saved, self.flops = last_saved, 0.0
        self._total, self._every = resolved(config.schedule.steps), resolved(config.log.every_steps)
        self._first, self._loader = first_step, loader
        self._writer, self._bar = writer, StepBar(first_step, self._total)
        peak = peak_flops(jax.devices()[0].device_kind, config.model.dtype)
        self._peak = None if peak is None else peak * jax.device_count()
        self.throughput = Throughput(
            first_step=first_step, total_steps=self._total, batch_size=config.data.batch_size
        )
        self._pending: collections.deque[tuple[int, Any]] = collections.deque()

    def update(self, done: int, metrics: Any, *, drain: bool) -> None:
        """Takes the metrics (still on the device) of the update that made `done`.

        Raises:
            Diverged: at the first update looked at whose loss or gradient is not finite.
        """
        self._pending.append((done, metrics))
        while len(self._pending) > (0 if drain else LAG):
            self._check(*self._pending.popleft())

    def write(self, done: int, values: dict[str, float]) -> None:
        """Logs metrics that were measured between two updates."""
        self._writer.write_scalars(done, values)

    def write_evaluation(self, done: int, values: dict[str, float]) -> None:
        """Logs the results of an evaluation."""
        if not values:
            return
        self._writer.write_scalars(done, values)
        log(f"eval at step {done}: {format_metrics(values)}")

    def _check(self, done: int, metrics: Any) -> None:
        flags = {name: value for name, value in metrics.items() if name in FLAGS}
        values = {f"train/{name}": float(value) for name, value in metrics.items() if name not in FLAGS}
        if not all(math.isfinite(values[key]) for key in ("train/loss", "train/grad_norm")):
            checkpoint = (
                "there is no checkpoint yet"
                if self.last_saved is None
                else f"checkpoint {self.last_saved} is good"
            )
            raise self._explain(done, values, flags, checkpoint)
        self._bar.update(done, values["train/loss"])
        if done % self._every == 0 or done in (self._total, self._first + 1):
            values |= self.throughput.lap(done, self._loader.stall_seconds)
            self._wall_time.set_training(self.throughput.seconds, self._loader.stall_seconds)
            values["perf/gflops_per_image"] = self.flops / 1e9
            values["perf/model_tflops_per_sec"] = self.flops * values["perf/images_per_sec"] / 1e12
            values["perf/goodput"] = self._wall_time.seconds["steps"] / max(
                1e-9, time.time() - self._wall_time.started
            )
            values["perf/peak_memory_mib"] = peak_memory() / 2**20
            if self._peak and self.flops:
                values["perf/mfu"] = self.flops * values["perf/images_per_sec"] / self._peak
            self._writer.write_scalars(done, values)
            log(progress_line(done, self._total, values))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class Throughput:
    """Speed and remaining time; evaluations and saves do not count as training.

    The speed is that of the last lap, the remaining time that of a moving average of laps. The first lap, which holds the
    compilation, is no speed to judge the rest by.
    """

    def __init__(self, *, first_step: int, total_steps: int, batch_size: int) -> None:
        self.total, self.batch_size = total_steps, batch_size
        self.seconds, self._started = 0.0, 0.0
        self._last_seconds, self._last_step, self._last_stall = 0.0, first_step, 0.0
        self._first_step, self._estimate = first_step, Estimate()

    def start(self) -> None:
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is inside is no training."""
        self._stop()
        try:
            yield
        finally:
            self.start()

    def _stop(self) -> None:
        self.seconds += time.perf_counter() - self._started

    def lap(self, done: int, stall_seconds: float) -> dict[str, float]:
        """Speed since the last lap, as metrics.

        Args:
            done: updates that are known to be finished.
            stall_seconds: total time spent waiting for data so far.
        """
        self._stop()
        self.start()
        seconds = max(self.seconds - self._last_seconds, 1e-9)
        updates, stall = done - self._last_step, stall_seconds - self._last_stall
        if self._last_step > self._first_step:
            self._estimate.lap(updates, seconds)
        self._last_seconds, self._last_step, self._last_stall = self.seconds, done, stall_seconds
        metrics = {
            "perf/images_per_sec": updates / seconds * self.batch_size,
            "perf/input_stall": min(1.0, stall / seconds),
        }
        left = self._estimate.seconds_for(self.total - done)
        return metrics if left is None else {**metrics, "perf/seconds_left": left}


def progress_line(step: int, total: int, values: Mapping[str, float]) -> str:
    """The console's line for one log step."""
    left = f"  left {format_duration(values['perf/seconds_left'])}" if "perf/seconds_left" in values else ""
    mfu = f"  MFU {100 * values['perf/mfu']:.0f} %" if "perf/mfu" in values else ""
    return (
        f"step {step:>{len(str(total))}}/{total} {100 * step // total:3d} %  loss {values['train/loss']:.4f}"
        f"  lr {values['train/lr']:.2e}  {values['perf/images_per_sec']:.0f} images/s{mfu}"
        f"  input stall {100 * values['perf/input_stall']:.0f} %{left}"
    )


class StepBar:
    """The progress bar of a run on a terminal; plain lines go on being printed above it, and are all there is elsewhere.

    Nothing where stdout is no terminal (a file, a scheduler's log), or on other processes."""

    def __init__(self, first_step: int, total: int) -> None:
        shown = jax.process_index() == 0 and sys.stdout.isatty()
        self._done = first_step
        self._bar = (
            tqdm(
                total=total,
                initial=first_step,
                unit="step",
                file=sys.stdout,
                leave=False,  # the last plain line says more
                dynamic_ncols=True,
            )
            if shown
            else None
        )

    def update(self, done: int, loss: float) -> None:
        """Moves it to `done` steps."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self._bar.update(done - self._done)
        self._done = done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def log_compilation(function: Callable[P, R], what: str, wall_time: WallTime) -> Callable[P, R]:
    """The jitted function, whose first call says before and after what it does. what: of the function, for people."""
    first = True

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal first
        if not first:
            return function(*args, **kwargs)
        first = False
        log(f"compiling {what}")
        started = time.perf_counter()
        with wall_time.spent("compilation"):
            result = function(*args, **kwargs)  # back as soon as it is compiled and under way
        log(f"compiled {what} in {format_duration(time.perf_counter() - started)}")
        return result

    return call
