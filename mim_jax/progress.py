"""Lines on the console, from the first process only, and progress of whatever takes more than a few seconds.

Progress is a bar on a terminal, elsewhere a line now and then; work that is done within `QUIET_SECONDS` shows nothing.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import jax
from tqdm import tqdm
from tqdm.std import EMA

T = TypeVar("T")

QUIET_SECONDS = 5.0
"""Until the first sign of life."""
LINE_SECONDS = 30.0
"""Between two lines, where there is no terminal."""
LAP_SECONDS = 1.0
"""Shortest time over which a speed is taken."""
SMOOTHING = 0.2
"""Weight of the newest lap in the moving average of the speed."""


def log(text: str) -> None:
    """A line on stdout, from the first process only; above the progress bar, where there is one."""
    if jax.process_index() == 0:
        tqdm.write(text.encode("utf-8", "backslashreplace").decode())  # a path may hold other bytes
        sys.stdout.flush()


class Estimate:
    """Remaining time from an exponential moving average of the speed: one slow lap does not swing it."""

    def __init__(self) -> None:
        self._done, self._seconds = EMA(SMOOTHING), EMA(SMOOTHING)  # tqdm's: corrected for the start
        self._known = False

    def lap(self, done: float, seconds: float) -> None:
        """Takes in that `done` units took so many seconds."""
        self._done(done)
        self._seconds(seconds)
        self._known = self._known or done > 0

    @property
    def rate(self) -> float | None:
        """Units a second; None before the first lap in which something was done."""
        return float(self._done() / max(self._seconds(), 1e-9)) if self._known else None

    def seconds_for(self, units: float) -> float | None:
        """How long so many more will take."""
        return None if not self.rate else units / self.rate


class Progress:
    """Counts what is done of `total` units (None = nobody knows how many) and shows it. A context manager.

    what: a few words, the beginning of the line. unit: of what is counted, in the plural. Other processes than the first
    are silent.
    """

    def __init__(self, what: str, total: int | None, unit: str = "images") -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._estimate = Estimate()
        self._started = self._lap = time.perf_counter()
        self._lap_done, self._last_line = 0, 0.0
        self._bar = (
            tqdm(
                desc=what,
                total=total,
                unit=f" {unit}",
                file=sys.stdout,
                leave=False,
                dynamic_ncols=True,
                delay=1.0,
            )
            if sys.stdout.isatty() and jax.process_index() == 0
            else None
        )

    def update(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.perf_counter()
        if now - self._lap >= LAP_SECONDS:
            self._estimate.lap(self.done - self._lap_done, now - self._lap)
            self._lap, self._lap_done = now, self.done
        since = now - (self._last_line or self._started)
        if since >= (LINE_SECONDS if self._last_line else QUIET_SECONDS) and self.done != self.total:
            self._last_line = now
            log(self.line())

    def line(self) -> str:
        """'features: 512 of 2,048 images (25 %), 41 images/s, left 0:37'."""
        text = f"{self.what}: {self.done:,}"
        if self.total:
            text += f" of {self.total:,} {self.unit} ({100 * self.done // self.total} %)"
        else:
            text += f" {self.unit}"
        rate = self._estimate.rate
        if rate:
            text += f", {format_rate(rate, self.unit)}"
        left = self._estimate.seconds_for(self.total - self.done) if self.total else None
        return text if left is None else f"{text}, left {format_duration(left)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            return
        seconds = time.perf_counter() - self._started
        if error is None and (self._last_line or seconds >= QUIET_SECONDS):
            log(f"{self.what}: {self.done:,} {self.unit} in {format_duration(seconds)}")


def tracked(items: Iterable[T], what: str, total: int | None, unit: str) -> Iterator[T]:
    """The items, each counted as one once its consumer asks for the next."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()


def format_rate(rate: float, unit: str) -> str:
    """'41 images/s'; of what takes longer than a second '2.9 s each'."""
    if rate < 1:
        return f"{1 / rate:.3g} s each"
    return f"{rate:.3g} {unit}/s" if rate < 1000 else f"{rate:,.0f} {unit}/s"


def format_duration(seconds: float) -> str:
    """'0:37', '1:02:03'."""
    whole = round(seconds)
    minutes = f"{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes.removeprefix("0")
