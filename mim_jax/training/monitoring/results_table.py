"""The result of a run in words and as rows: what was measured at its start and at its end.

A held-out metric is a term of the method (`loss`, `token_accuracy`, ...), or what a baseline reaches in a term
(`constant_loss`). A method's own names, which are not here, are shown with spaces for underscores.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mim_jax.transfer.metrics import STANDARD_ERROR

DETAIL_SUFFIXES = ("_seconds", STANDARD_ERROR)
"""Endings of metrics that are about a result, and not one: not shown in tables and plots."""

TERMS = {
    "loss": "held-out loss",
    "centre": "held-out loss of the centre",
    "edge": "held-out loss of the ring around it",
    "token_accuracy": "held-out token accuracy",
    "top1": "held-out top-1 accuracy",
    "top5": "held-out top-5 accuracy",
    "mean_per_class": "held-out accuracy, mean over classes",
    "map_11_point": "held-out mean average precision (11 points)",
    "knn_top1": "k-NN top-1 accuracy",
    "head_kl_last3": "KL between heads, last three layers (nats)",
    "head_kl_first": "KL between heads, first layer (nats)",
    "diversity_ratio": "KL between heads, last three layers over the others",
    "attention_distance_px": "mean attention distance (pixels)",
    "attention_entropy": "mean attention entropy (nats)",
}
"""Term -> what it is called, in the order of the result table."""

BASELINES = {
    "uniform": ("guessing all tokens alike, ln(vocabulary)", "all tokens alike"),
    "position_frequency": ("token frequencies per position, no image", "token frequencies"),
    "constant": (
        "predicting a constant (mean colour, or 0 if normalised)",
        "a constant",
    ),
    "other_images": ("same network, every patch from another image", "patches of other images"),
    "raw_pixels": ("k-NN on raw pixels", "raw pixels"),
    "commonest_class": ("always the commonest class", "commonest class"),
}
"""Baseline -> what it is called below its term in the result table, and beside its line in a plot."""

_KNN = re.compile(r"knn(\d+)_top1")


def term_and_baseline(name: str, logged: Iterable[str] = ()) -> tuple[str, str]:
    """The term that a metric is of, and the baseline that it is ("" = the network itself).

    Args:
        name: without `eval/`.
        logged: names of all held-out metrics; the commonest class is a baseline of the accuracy among them.
    """
    if name == "knn_raw_pixels_top1":
        return "knn_top1", "raw_pixels"
    if name == "commonest_class_top1":
        return ("top1" if "top1" in logged else "knn_top1"), "commonest_class"
    for baseline in BASELINES:
        if name.startswith(f"{baseline}_"):
            return name.removeprefix(f"{baseline}_"), baseline
    return name, ""


def term_label(name: str) -> str:
    """What the term `name` is called."""
    if found := _KNN.fullmatch(name):
        return f"{TERMS['knn_top1']}, k = {found[1]}"
    return TERMS.get(name, name.replace("_", " "))


def display_rank(name: str, logged: Iterable[str] = ()) -> tuple[int, int]:
    """For sorting: terms in their order, each followed by its baselines, then what has no place here."""
    term, baseline = term_and_baseline(name, logged)
    terms = list(TERMS)
    place = (
        terms.index("knn_top1" if _KNN.fullmatch(term) else term)
        if term in TERMS or _KNN.fullmatch(term)
        else len(terms)
    )
    return place, list(BASELINES).index(baseline) + 1 if baseline else 0


Rows = list[tuple[str, str, str]]
"""What, at the start, at the end."""


def result_rows(records: list[dict[str, Any]]) -> Rows:
    """Rows from the records of metrics.jsonl: every term of the last evaluation, each followed by its baselines.

    The start is the evaluation of step 0, and empty where there was none.
    """
    evaluations = [record for record in records if any(key.startswith("eval/") for key in record)]
    if not evaluations:
        return []
    start = evaluations[0] if evaluations[0]["step"] == 0 else {}
    end = evaluations[-1]
    names = held_out_names(end)
    names = sorted(names, key=functools.partial(display_rank, logged=names))  # stable: others as logged
    return [
        (
            _row_label(name, names),
            format_number(start.get(f"eval/{name}")),
            format_number(end[f"eval/{name}"]),
        )
        for name in names
    ]


def held_out_names(values: Mapping[str, Any]) -> list[str]:
    """Names, without `eval/`, of the held-out metrics that people are shown."""
    return [
        key.removeprefix("eval/")
        for key in values
        if key.startswith("eval/") and not key.endswith(DETAIL_SUFFIXES)
    ]


def _row_label(name: str, names: list[str]) -> str:
    term, baseline = term_and_baseline(name, names)
    return f"  {BASELINES[baseline][0]}" if baseline else term_label(term)


def format_number(value: float | None) -> str:
    """Four decimals; nothing for nothing."""
    return "" if value is None else f"{value:.4f}"


def format_metrics(values: Mapping[str, float]) -> str:
    """Held-out metrics for the console: 'held-out loss 2.5967 (all tokens alike 4.1589), k-NN top-1 accuracy 0.2361'."""
    names = held_out_names(values)
    terms: dict[str, list[str]] = {}
    own: dict[str, str] = {}
    for name in sorted(names, key=functools.partial(display_rank, logged=names)):
        term, baseline = term_and_baseline(name, names)
        text = format_number(values[f"eval/{name}"])
        beside = terms.setdefault(term, [])
        if baseline:
            beside.append(f"{BASELINES[baseline][1]} {text}")
        else:
            own[term] = text
    return ", ".join(
        f"{term_label(term)} {own.get(term, '')}".rstrip() + (f" ({', '.join(beside)})" if beside else "")
        for term, beside in terms.items()
    )


def format_rows(rows: Rows, start: str = "untrained", end: str = "trained") -> str:
    """The rows as an aligned table for the console; a column with nothing in it is left out."""
    if not rows:
        return ""
    width = max(len(what) for what, _, _ in rows)
    columns = [(start, [row[1] for row in rows]), (end, [row[2] for row in rows])]
    columns = [(title, texts) for title, texts in columns if any(texts)]
    lines = [f"{'':{width}}" + "".join(f"  {title:>10}" for title, _ in columns)]
    for at, (what, *_) in enumerate(rows):
        lines.append(
            f"{what:{width}}" + "".join(f"  {texts[at]:>{max(10, len(title))}}" for title, texts in columns)
        )
    return "\n".join(lines)
