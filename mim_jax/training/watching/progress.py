"""The progress bar on a terminal; plain lines go on being printed above it, and are all there is elsewhere."""

import sys

import jax
from tqdm import tqdm


class Bar:
    """Steps done of a run. Nothing where stdout is no terminal (a file, a scheduler's log), or on other processes."""

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
