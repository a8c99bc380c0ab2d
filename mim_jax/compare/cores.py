"""The processor cores of runs that work side by side: each its own, so that none waits for another's threads."""

import contextlib
import itertools
import os
from collections.abc import Iterator

Cores = frozenset[int]


def divided(slots: int) -> list[Cores | None]:
    """For each slot its cores, as equal in number as can be, in order; None = all.

    That is what all get where one run has the machine to itself, where cores are fewer than slots, and where the system does
    not pin processes.
    """
    if slots == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * slots
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < slots:
        return [None] * slots
    bounds = [slot * len(cores) // slots for slot in range(slots + 1)]
    return [frozenset(cores[start:end]) for start, end in itertools.pairwise(bounds)]


@contextlib.contextmanager
def only(cores: Cores | None) -> Iterator[None]:
    """Processes started within have these cores (None = all): they begin with those of the thread that starts them."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
