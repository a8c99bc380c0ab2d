"""The result of a run as rows: what was measured at its start and at its end."""

from typing import Any

from mim_jax.training.watching.log import ASIDE

LABELS = {
    "loss": "held-out loss",
    "uniform_loss": "  guessing all tokens alike, ln(vocabulary)",
    "position_frequency_loss": "  token frequencies per position, no image",
    "other_images_loss": "  same network, every patch from another image",
    "constant_loss": "  predicting one constant (0 where targets are normalised, else the image's mean)",
    "token_accuracy": "held-out token accuracy",
    "position_frequency_token_accuracy": "  token frequencies per position, no image",
    "other_images_token_accuracy": "  same network, every patch from another image",
    "top1": "held-out top-1",
    "top5": "held-out top-5",
    "mean_per_class": "mean per class",
    "map_11_point": "mean average precision, 11 points",
    "knn_top1": "k-NN top-1",
    "knn_raw_pixels_top1": "  of raw pixels",
    "commonest_class_top1": "  always the commonest class",
    "head_kl_last3": "KL between heads, last three layers (nats)",
    "head_kl_first": "KL between heads, first layer",
    "diversity_ratio": "  of the last three layers to the others",
    "attention_distance_px": "mean attention distance (pixels)",
    "attention_entropy": "mean attention entropy (nats)",
}
"""Plain words for metric names; a name that is not here is shown as it is."""


def result_rows(records: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(what, at the start = untrained, at the end) from the records of metrics.jsonl, last evaluation first seen order."""
    evaluations = [record for record in records if any(key.startswith("eval/") for key in record)]
    if not evaluations:
        return []
    start = evaluations[0] if evaluations[0]["step"] == 0 else {}
    end = evaluations[-1]
    names = [key.removeprefix("eval/") for key in end if key.startswith("eval/") and not key.endswith(ASIDE)]
    known = list(LABELS)
    names.sort(
        key=lambda name: known.index(name) if name in known else len(known)
    )  # stable: others as logged
    return [
        (LABELS.get(name, name), number(start.get(f"eval/{name}")), number(end[f"eval/{name}"]))
        for name in names
    ]


def number(value: float | None) -> str:
    """Four decimals; nothing for nothing."""
    return "" if value is None else f"{value:.4f}"


def as_text(rows: list[tuple[str, str, str]]) -> str:
    """The rows as an aligned table for the console."""
    if not rows:
        return ""
    width = max(len(what) for what, _, _ in rows)
    lines = [f"{'':{width}}  {'untrained':>10}  {'trained':>10}"]
    lines += [f"{what:{width}}  {start:>10}  {end:>10}" for what, start, end in rows]
    return "\n".join(lines)
