"""Metrics in words: what a key of metrics.jsonl is called where people read it.

A held-out metric is a term of the method (`loss`, `token_accuracy`, ...), or what a baseline reaches in a term
(`constant_loss`). A method's own names, which are not here, are shown with spaces for underscores.
"""

import re
from collections.abc import Iterable

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


def words(name: str) -> str:
    """What the term `name` is called."""
    if found := _KNN.fullmatch(name):
        return f"{TERMS['knn_top1']}, k = {found[1]}"
    return TERMS.get(name, name.replace("_", " "))


def rank(name: str, logged: Iterable[str] = ()) -> tuple[int, int]:
    """For sorting: terms in their order, each followed by its baselines, then what has no place here."""
    term, baseline = term_and_baseline(name, logged)
    terms = list(TERMS)
    place = (
        terms.index("knn_top1" if _KNN.fullmatch(term) else term)
        if term in TERMS or _KNN.fullmatch(term)
        else len(terms)
    )
    return place, list(BASELINES).index(baseline) + 1 if baseline else 0
