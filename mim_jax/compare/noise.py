"""Numbers over seeds, and which differences between them mean nothing."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mim_jax.compare.protocol import Column

RULE = (
    "A difference is inside the noise where the two means are no further apart than the sum of the two half ranges"
    " over the seeds and, of a share of the held-out images, the standard error of the difference of two shares of so"
    " many images. With so few seeds that is a rough rule, not a test: a difference outside is a hint."
)


class Summary(NamedTuple):
    """Mean and half range over the seeds; standard error for want of held-out images, which all seeds share."""

    mean: float
    half_range: float
    seeds: int
    standard_error: float = 0.0


def summarise(values: Sequence[float], errors: Sequence[float] = ()) -> Summary:
    """Of one seed's value or more; the half range of one is 0. errors: the values' standard errors, where known."""
    return Summary(
        statistics.fmean(values),
        (max(values) - min(values)) / 2,
        len(values),
        statistics.fmean(errors) if errors else 0.0,
    )


def decimals(values: Sequence[float]) -> int:
    """How many decimals numbers of this size are shown with."""
    largest = max((abs(value) for value in values), default=0.0)
    return next((shown for limit, shown in ((1000, 0), (100, 1), (1, 2)) if largest >= limit), 4)


def judge(column: Column, summaries: Mapping[str, Summary]) -> str:
    """One sentence on a quality: the best arm, and which others cannot be told from it."""
    known = {arm: summary for arm, summary in summaries.items() if summary.seeds > 1}
    if len(known) < 2:
        return (
            f"{column.title}: nothing can be said about differences; that takes two arms with two seeds each."
        )
    sign = 1 if column.better == "higher" else -1
    best = max(known, key=lambda arm: sign * known[arm].mean)
    digits = decimals([summary.mean for summary in known.values()])
    inside, outside = [], []
    for arm, summary in known.items():
        apart = abs(known[best].mean - summary.mean)
        noise = known[best].half_range + summary.half_range
        noise += math.hypot(known[best].standard_error, summary.standard_error)
        if arm != best and apart <= noise:
            inside.append(f"{arm} ({apart:.{digits}f} apart, noise {noise:.{digits}f})")
        elif arm != best:
            outside.append(arm)
    text = f"{column.title}: {best} has the best mean"
    text += (
        f"; inside the noise of it: {', '.join(inside)}" if inside else "; nothing is inside the noise of it"
    )
    text += f"; outside: {', '.join(outside)}." if outside else "."
    unjudged = [arm for arm in summaries if arm not in known]
    return f"{text} Not judged, for want of a second seed: {', '.join(unjudged)}." if unjudged else text
