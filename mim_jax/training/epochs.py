"""Where epochs begin, in updates: batches cross epochs, so this takes whole numbers to be exact."""

from mim_jax.methods.method import Method


def first_step_of(epoch: int, num_examples: int, batch_size: int) -> int:
    """The first update that belongs to `epoch` (from 0); one that crosses into it belongs to the epoch before."""
    return -(-epoch * num_examples // batch_size)


def phase_starts(method: Method, num_examples: int, batch_size: int) -> list[int]:
    """The first update of every phase."""
    return [first_step_of(phase.first_epoch, num_examples, batch_size) for phase in method.phases]


def phase_of(method: Method, step: int, num_examples: int, batch_size: int) -> int:
    """Number of the phase that update `step` (from 0) belongs to."""
    starts = phase_starts(method, num_examples, batch_size)
    return max(i for i, start in enumerate(starts) if step >= start)
