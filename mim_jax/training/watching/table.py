"""The result of a run as rows: what was measured at its start and at its end."""

import functools
from collections.abc import Mapping
from typing import Any

from mim_jax.training.watching.log import ASIDE
from mim_jax.training.watching.words import BASELINES, rank, term_and_baseline, words

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
    names = sorted(names, key=functools.partial(rank, logged=names))  # stable: others as logged
    return [
        (_label(name, names), number(start.get(f"eval/{name}")), number(end[f"eval/{name}"]))
        for name in names
    ]


def held_out_names(values: Mapping[str, Any]) -> list[str]:
    """Names, without `eval/`, of the held-out metrics that people are shown."""
    return [
        key.removeprefix("eval/") for key in values if key.startswith("eval/") and not key.endswith(ASIDE)
    ]


def _label(name: str, names: list[str]) -> str:
    term, baseline = term_and_baseline(name, names)
    return f"  {BASELINES[baseline][0]}" if baseline else words(term)


def number(value: float | None) -> str:
    """Four decimals; nothing for nothing."""
    return "" if value is None else f"{value:.4f}"


def in_a_line(values: Mapping[str, float]) -> str:
    """Held-out metrics for the console: 'held-out loss 2.5967 (all tokens alike 4.1589), k-NN top-1 accuracy 0.2361'."""
    names = held_out_names(values)
    terms: dict[str, list[str]] = {}
    own: dict[str, str] = {}
    for name in sorted(names, key=functools.partial(rank, logged=names)):
        term, baseline = term_and_baseline(name, names)
        text = number(values[f"eval/{name}"])
        beside = terms.setdefault(term, [])
        if baseline:
            beside.append(f"{BASELINES[baseline][1]} {text}")
        else:
            own[term] = text
    return ", ".join(
        f"{words(term)} {own.get(term, '')}".rstrip() + (f" ({', '.join(beside)})" if beside else "")
        for term, beside in terms.items()
    )


def as_text(rows: Rows, start: str = "untrained", end: str = "trained") -> str:
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
