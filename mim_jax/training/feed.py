"""Batches for the loop: made ahead, and thrown away where something that they hold has changed."""

from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Self

from mim_jax.data import Loader
from mim_jax.methods.protocol import Batch


class Feed:
    """Placed batches step by step; may be stopped between two of them. A context manager."""

    def __init__(self, loader: Loader, put: Callable[[Any], Batch]) -> None:
        self._loader, self._put = loader, put
        self._batches: Generator[Batch, None, None] | None = None

    def batch(self, step: int) -> Batch:
        """That of `step`, which follows the last one asked for; any step after `stop`."""
        if self._batches is None:
            self._batches = self._loader.iterate(step, self._put)
        return next(self._batches)

    def stop(self) -> None:
        """Throws away what was made ahead."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
