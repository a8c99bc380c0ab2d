"""Which checkpoints stay on disk."""

import math
from collections.abc import Collection, Mapping


def best_step(scores: Mapping[int, float], mode: str) -> int | None:
    """The step with the best score (mode "max" or "min"), of equals the later; NaN never wins."""
    sign = 1.0 if mode == "max" else -1.0
    ranked = [(sign * score, step) for step, score in scores.items() if not math.isnan(score)]
    return max(ranked)[1] if ranked else None


def steps_to_keep(
    steps: Collection[int], scores: Mapping[int, float], *, keep_last: int, keep_every: int, best_mode: str
) -> set[int]:
    """The last `keep_last` steps, every multiple of `keep_every` (0: none), and the best of `scores`."""
    kept = set(sorted(steps)[-keep_last:])
    if keep_every:
        kept |= {step for step in steps if step % keep_every == 0}
    if (best := best_step(scores, best_mode)) is not None:
        kept.add(best)
    return kept
