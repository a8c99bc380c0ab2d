"""The curves of a run: one panel for each kind of metric, with the baselines as labelled horizontal lines.

What is drawn is decided by `panels`; a metric that never moved, or was measured once, is a sentence and not a plot. An axis
never magnifies noise: shares and speeds start at 0, and a loss has an axis of at least a tenth of its size.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

from mim_jax.training.monitoring.results_table import (
    BASELINES,
    DETAIL_SUFFIXES,
    display_rank,
    held_out_names,
    term_and_baseline,
    term_label,
)

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SHARE, PART, SIZE, FREE = "share", "part", "size", "free"
"""Kinds of axes: an accuracy, from 0; a part of a whole, from 0 to 1; what is positive, from 0; a loss."""

SPEED = "perf/images_per_sec"
CURVES = (
    ("loss", FREE, ("train/loss", "eval/loss")),
    ("loss of the centre", FREE, ("train/centre", "eval/centre")),
    ("loss of the ring around the centre", FREE, ("train/edge", "eval/edge")),
    ("token accuracy", SHARE, ("train/token_accuracy", "eval/token_accuracy")),
    ("top-1 accuracy", SHARE, ("eval/top1",)),
    ("mean average precision (11 points)", SHARE, ("eval/map_11_point",)),
    ("k-NN top-1 accuracy", SHARE, ("eval/knn_top1",)),
    ("learning rate", SIZE, ("train/lr",)),
    ("gradient norm", SIZE, ("train/grad_norm",)),
    ("images per second", SIZE, (SPEED,)),
    ("model TFLOP per second", SIZE, ("perf/model_tflops_per_sec",)),
    ("share of the peak speed (MFU)", PART, ("perf/mfu",)),
    ("share of time waiting for data", PART, ("perf/input_stall",)),
)
"""Title of a panel, kind of its axis, the metrics it shows; a panel none of whose metrics was logged is left out. Metrics of
a method that are not here get panels of their own, after these."""

LEAST_SPAN = 0.1
"""A loss has an axis of at least this share of its largest value."""
LEAST_SHARE = 0.05
"""The axis of an accuracy ends here at the lowest."""
STILL = 0.01
"""A size that varies by less than this share of itself is no curve."""
STILL_PART = 0.05
"""Nor is a part of a whole that varies by less than this."""
NOT_SHOWN = ("eval/top5", "eval/mean_per_class")
"""Metrics that the result table has and that tell nothing more as a curve."""

COLOURS = dict(
    zip(
        (short for _, short in BASELINES.values()),
        ("tab:green", "tab:red", "tab:brown", "tab:purple", "tab:olive", "tab:pink"),
        strict=True,
    )
)
"""Of the horizontal line of a baseline, the same in all panels."""

Points = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot. lines: label -> (step, value) in order. levels: label -> value of a horizontal line."""

    title: str
    kind: str
    lines: dict[str, Points]
    levels: dict[str, float]

    @property
    def limits(self) -> tuple[float, float]:
        """Of the value axis."""
        values = [value for points in self.lines.values() for _, value in points] + list(self.levels.values())
        return limits(self.kind, min(values), max(values))


def limits(kind: str, low: float, high: float) -> tuple[float, float]:
    """The value axis for values from `low` to `high`, wide enough that noise looks like noise."""
    if kind == SHARE:
        return 0.0, min(1.02, max(LEAST_SHARE, 1.15 * high))
    if kind == PART:
        return 0.0, 1.02
    if kind == SIZE:
        return 0.0, 1.1 * high if high > 0 else 1.0
    span = max(1.1 * (high - low), LEAST_SPAN * max(abs(low), abs(high)), 1e-12)
    middle = (low + high) / 2
    bottom = max(0.0, middle - span / 2) if low >= 0 else middle - span / 2
    return bottom, bottom + span


def panels(records: Sequence[Mapping[str, Any]], start: str = "untrained") -> tuple[list[Panel], list[str]]:
    """What there is to draw, and sentences on what is not worth a plot.

    Args:
        records: of metrics.jsonl.
        start: what the network of step 0 is called.
    """
    found, sentences = [], []
    for title, kind, keys in _chosen({key for record in records for key in record}):
        lines = {_source(key): points for key in keys if (points := _points(records, key))}
        panel = Panel(title, kind, lines, _levels(records, keys, start))
        if (said := _sentence(panel)) is not None:
            sentences.append(said)
        else:
            found.append(panel)
    return found, sentences


def draw(panel: Panel) -> Figure:
    """The panel as a picture that can be read on a telephone."""
    figure, axis = plt.subplots(figsize=(4.4, 3.2), layout="constrained")
    for label, points in panel.lines.items():
        marker = "o" if len(points) < 15 else ""
        colour = "tab:orange" if label == "held-out" else "tab:blue"
        axis.plot(
            *zip(*points, strict=True),
            label=label,
            marker=marker,
            markersize=3.5,
            linewidth=1.3,
            color=colour,
        )
    for label, value in panel.levels.items():
        colour = COLOURS.get(label, "0.35")
        axis.axhline(value, label=label, color=colour, linewidth=1.2, linestyle="--")
    axis.set_title(panel.title, fontsize=11, parse_math=False)
    axis.set_ylim(*panel.limits)
    axis.set_xlim(left=0)
    axis.set_xlabel("step", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.grid(alpha=0.25)
    if len(panel.lines) + len(panel.levels) > 1:
        below = len(panel.lines) + len(panel.levels) > 2
        place: dict[str, Any] = (
            dict(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2) if below else dict(loc="best")
        )
        for text in axis.legend(fontsize=8, frameon=not below, **place).get_texts():
            text.set_parse_math(False)
    return figure


def _chosen(logged: set[str]) -> list[tuple[str, str, list[str]]]:
    """Title, kind and metrics of every panel: ours, then what else is learnt; baselines and timings have no curve."""
    chosen = [(title, kind, [key for key in keys if key in logged]) for title, kind, keys in CURVES]
    shown = {key for _, _, keys in CURVES for key in keys} | set(NOT_SHOWN)
    others = {key.partition("/")[2] for key in logged - shown if key.startswith(("train/", "eval/"))}
    others = {
        name for name in others if not name.endswith(DETAIL_SUFFIXES) and not term_and_baseline(name)[1]
    }
    for name in sorted(others):
        keys = [key for key in (f"train/{name}", f"eval/{name}") if key in logged]
        chosen.append((term_label(name), FREE, keys))
    return [(title, kind, keys) for title, kind, keys in chosen if keys]


def _points(records: Sequence[Mapping[str, Any]], key: str) -> Points:
    """(step, value) in order; of the speed without the first, which holds the compilation."""
    points = [(record["step"], record[key]) for record in records if key in record]
    return points[1:] if key == SPEED and len(points) > 1 else points


def _source(key: str) -> str:
    return {"train": "training", "eval": "held-out"}.get(key.split("/", maxsplit=1)[0], "")


def _levels(records: Sequence[Mapping[str, Any]], keys: Sequence[str], start: str) -> dict[str, float]:
    """The baselines of what a panel shows held out, as measured last, and the network of step 0."""
    terms = {key.removeprefix("eval/") for key in keys if key.startswith("eval/")}
    logged = held_out_names({key: 0 for record in records for key in record})
    levels: dict[str, float] = {}
    for name in sorted(logged, key=functools.partial(display_rank, logged=logged)):
        term, baseline = term_and_baseline(name, logged)
        if baseline and term in terms:
            levels[BASELINES[baseline][1]] = _points(records, f"eval/{name}")[-1][1]
    for term in sorted(terms):
        points = _points(records, f"eval/{term}")
        if points and points[0][0] == 0 and len(points) > 1:
            levels[start] = points[0][1]
    return levels


def _sentence(panel: Panel) -> str | None:
    """What to say instead of drawing; None = draw it."""
    values = [value for points in panel.lines.values() for _, value in points]
    if len(values) == 1:
        ((step, value),) = next(iter(panel.lines.values()))
        return f"{panel.title}: {_shown(panel.kind, value)}, measured once, at step {step:g}."
    low, high = min(values), max(values)
    still = {SIZE: STILL * abs(high), PART: STILL_PART}.get(panel.kind)
    if still is None or panel.levels or high - low > still:
        return None
    if _shown(panel.kind, low) == _shown(panel.kind, high):
        return f"{panel.title}: {_shown(panel.kind, high)} throughout."
    return f"{panel.title}: {_shown(panel.kind, low)} to {_shown(panel.kind, high)}."


def _shown(kind: str, value: float) -> str:
    return f"{100 * value:.1f} %" if kind in (SHARE, PART) else f"{value:.4g}"
