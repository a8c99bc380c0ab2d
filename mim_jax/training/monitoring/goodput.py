"""Where a run's wall time goes: the share of it that trained (goodput), over all sessions, with the work that a kill lost."""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PARTS = ("steps", "compilation", "input", "refreshes", "evaluation", "checkpoints")
"""Parts of a session's time; what is none of these is its start and end: importing, opening data, the report."""


class WallTime:
    """Seconds of this session by part. started: when it began, seconds since 1970."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Counts the time inside as a part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started

    def timed(self, part: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, whose calls count as a part."""

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.spent(part):
                return function(*args, **kwargs)

        return call

    def set_training(self, seconds: float, stall: float) -> None:
        """What passed in the training loop so far, between its pauses; of it `stall` was waiting for data."""
        self.seconds["input"] = stall
        self.seconds["steps"] = max(0.0, seconds - stall - self.seconds["compilation"])


def shares(sessions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of the wall time of all sessions by part, with "start and end" and "lost work"; {} where it is not known.

    Lost are the steps that a session had made beyond the step from which the next one went on: their part of its step time.
    """
    total = sum(session["seconds"] for session in sessions)
    if not total or not all("parts" in session for session in sessions):
        return {}
    seconds = {part: sum(session["parts"].get(part, 0.0) for session in sessions) for part in PARTS}
    lost = 0.0
    for session, following in itertools.pairwise(sessions):
        made = session["last_step"] - session["first_step"]
        repeated = min(made, session["last_step"] - following["first_step"])
        if repeated > 0:
            lost += session["parts"].get("steps", 0.0) * repeated / made
    seconds["steps"] -= lost
    seconds |= {"lost work": lost, "start and end": max(0.0, total - sum(seconds.values()) - lost)}
    return {part: value / total for part, value in seconds.items()}


def describe_goodput(sessions: Sequence[Mapping[str, Any]]) -> str:
    """'steps 83.1 %, compilation 5.2 %, ...', the largest first; "" where it is not known."""
    named = sorted(shares(sessions).items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {100 * share:.1f} %" for part, share in named if share >= 0.0005)
