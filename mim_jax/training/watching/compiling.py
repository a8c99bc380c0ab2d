"""Says that a function compiles, which a large network's training step does for minutes."""

import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mim_jax.progress import clock
from mim_jax.training.watching.log import say

P = ParamSpec("P")
R = TypeVar("R")


def announced(function: Callable[P, R], what: str) -> Callable[P, R]:
    """The jitted function, whose first call says before and after what it does. what: of the function, for people."""
    first = True

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal first
        if not first:
            return function(*args, **kwargs)
        first = False
        say(f"compiling {what}")
        started = time.perf_counter()
        made = function(*args, **kwargs)  # back as soon as it is compiled and under way
        say(f"compiled {what} in {clock(time.perf_counter() - started)}")
        return made

    return call
