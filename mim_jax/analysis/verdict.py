"""Whether some runs show what the paper claims of masked and of supervised pre-training (docs/papers/dark_secrets.md 0, 2.4).

Thresholds are ours: the paper states none. A verdict speaks of the runs that were given and of nothing else.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from mim_jax.analysis.attention_metrics import GLOBAL, LOCAL, NUM_LAST
from mim_jax.analysis.cka import mean_off_diagonal
from mim_jax.analysis.measure import NetworkMeans
from mim_jax.config.schema import Config
from mim_jax.methods.method import Method

Verdict = Literal["seen", "not seen", "cannot say"]
KINDS = ("mim", "supervised", "other")
KIND_TITLES = {
    "mim": "masked pre-training",
    "supervised": "supervised from scratch",
    "other": "fine-tuned, probed or unknown",
}
"""What people are shown of a kind."""

MOSTLY_GLOBAL = 0.5
"""A layer from this share of global heads on counts as global."""
DIVERSITY_KEPT = 0.5
"""A diversity ratio from here on counts as kept in the last layers."""
DIVERSITY_LOST = 0.1
"""A diversity ratio up to here counts as nearly gone."""
MIN_KL = 0.01
"""Nats. Below this mean KL in the layers before the last three no heads differ, so a ratio says nothing (docs/papers/dark_secrets.md 3: 0.0004
where heads are alike, 0.9 where they are not)."""
MARGIN = 0.05
"""By how much one CKA must exceed another."""


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A run that was looked at. kind: mim | supervised (labels from scratch) | other (fine-tuned, probed)."""

    name: str
    kind: str
    means: NetworkMeans
    cls: str = "drop"

    @property
    def title(self) -> str:
        """Two lines: its name, and what it was trained on."""
        return f"{self.name}\n({KIND_TITLES[self.kind]})"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the verdict table.

    numbers: run -> its number, as text; notes: run -> what else to know of it, or ''. reason: in words, where it cannot be said.
    """

    claim: str
    statement: str
    quantity: str
    threshold: str
    numbers: dict[str, str]
    notes: dict[str, str]
    verdict: Verdict
    reason: str = ""


def kind_of(config: Config, method: Method) -> str:
    """What a run was trained on."""
    if not method.supervised:
        return "mim"
    return "other" if config.init else "supervised"


def findings(summaries: Sequence[RunSummary]) -> list[Finding]:
    """The table: two halves of C1 and of C2, and C6."""
    last = f"last {NUM_LAST} layers"
    ratio = f"diversity ratio ({last} to the others)"
    return [
        _claim_about_kind(
            "C1",
            "masked: local heads in every layer",
            "smallest share of local heads of a layer",
            "> 0 in every masked run",
            summaries,
            "mim",
            lambda s: float(s.means.local_share(s.cls).min()),
            lambda value: value > 0,
        ),
        _claim_about_kind(
            "C1",
            f"supervised: local heads in lower layers only, global ones in the {last}",
            f"mean share of global heads, {last}; or 0 where a head there is local",
            f"≥ {MOSTLY_GLOBAL} in every supervised run",
            summaries,
            "supervised",
            _global_at_the_end,
            lambda value: value >= MOSTLY_GLOBAL,
            no_local_heads,
        ),
        _claim_about_kind(
            "C2",
            "masked: heads stay different",
            ratio,
            f"≥ {DIVERSITY_KEPT} in every masked run",
            summaries,
            "mim",
            lambda s: s.means.diversity_ratio,
            lambda value: value >= DIVERSITY_KEPT,
            alike_in_lower_layers,
        ),
        _claim_about_kind(
            "C2",
            f"supervised: heads become alike in the {last}",
            ratio,
            f"≤ {DIVERSITY_LOST} in every supervised run",
            summaries,
            "supervised",
            lambda s: s.means.diversity_ratio,
            lambda value: value <= DIVERSITY_LOST,
            alike_in_lower_layers,
        ),
        _layer_similarity(summaries),
    ]


def too_shallow(summary: RunSummary) -> str:
    """Why nothing can be said of a run's last layers, or ''."""
    depth = len(summary.means.blocks)
    return f"{summary.name} has {depth} layers: none before the last {NUM_LAST}" if depth <= NUM_LAST else ""


def no_local_heads(summary: RunSummary) -> str:
    """Why a run cannot lose its local heads, or ''."""
    if too_shallow(summary):
        return too_shallow(summary)
    lower = summary.means.local_share(summary.cls)[:-NUM_LAST]
    return "" if lower.max() > 0 else f"{summary.name} has no local heads in its lower layers either"


def alike_in_lower_layers(summary: RunSummary) -> str:
    """Why a run cannot lose the diversity of its heads, or ''."""
    if too_shallow(summary):
        return too_shallow(summary)
    if math.isnan(summary.means.diversity_ratio) or summary.means.layer_kl[:-NUM_LAST].mean() < MIN_KL:
        return f"the heads of {summary.name} are alike in its lower layers already (untrained?)"
    return ""


def _global_at_the_end(summary: RunSummary) -> float:
    local, far = (
        summary.means.local_share(summary.cls)[-NUM_LAST:],
        summary.means.global_share(summary.cls)[-NUM_LAST:],
    )
    return 0.0 if local.max() > 0 else float(far.mean())


def _claim_about_kind(
    claim: str,
    statement: str,
    quantity: str,
    threshold: str,
    summaries: Sequence[RunSummary],
    kind: str,
    measure: Callable[[RunSummary], float],
    holds: Callable[[float], bool],
    precondition: Callable[[RunSummary], str] = lambda summary: "",
) -> Finding:
    """A statement about all runs of one kind; the others' numbers stand beside them.

    precondition: why nothing can be said of a run, or ''.
    """
    values = {s.name: measure(s) for s in summaries}
    of_kind = [s for s in summaries if s.kind == kind]
    reason = next(filter(None, map(precondition, of_kind)), "")
    if not of_kind:
        reason = f"no {'masked' if kind == 'mim' else kind} run is among them"
    verdict: Verdict = "seen" if all(holds(values[s.name]) for s in of_kind) else "not seen"
    return Finding(
        claim,
        statement,
        quantity,
        threshold,
        {name: _format(value) for name, value in values.items()},
        {s.name: shares_at_the_end(s) if claim == "C1" else "" for s in summaries},
        "cannot say" if reason else verdict,
        reason,
    )


def shares_at_the_end(summary: RunSummary) -> str:
    """Mean shares of local and of global heads in the last layers, in words."""
    local, far = (
        summary.means.local_share(summary.cls)[-NUM_LAST:],
        summary.means.global_share(summary.cls)[-NUM_LAST:],
    )
    return f"last {NUM_LAST}: local {local.mean():.2f}, global {far.mean():.2f}"


def _layer_similarity(summaries: Sequence[RunSummary]) -> Finding:
    """C6 compares: every masked run's layers are more alike than those of every supervised run."""
    values = {
        s.name: float("nan") if s.means.cka is None else mean_off_diagonal(s.means.cka) for s in summaries
    }
    masked, supervised = ([values[s.name] for s in summaries if s.kind == kind] for kind in KINDS[:2])
    reason = "" if masked and supervised else "it takes a masked and a supervised run"
    if not reason and np.isnan([*masked, *supervised]).any():
        reason = "CKA was not computed"
    verdict: Verdict = "cannot say"
    if not reason:
        verdict = "seen" if min(masked) - max(supervised) >= MARGIN else "not seen"
    return Finding(
        "C6",
        "layers of masked runs are more alike than those of supervised runs",
        "mean CKA of different layers",
        f"masked − supervised ≥ {MARGIN}",
        {name: _format(value) for name, value in values.items()},
        dict.fromkeys(values, ""),
        verdict,
        reason,
    )


def _format(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


QUANTITIES = {
    "attention distance": (
        "How far, on average, a patch looks: the distance in pixels between a query and its keys, weighted by the attention."
        " One dot a head, the large dot is the layer's mean. Dashed: even attention over all patches. A head is local below"
        f" {LOCAL:g} of that, global above {GLOBAL:g}."
    ),
    "entropy": (
        "How spread out a patch's attention is, in nats: 0 on a single key, the dashed line for even attention."
        " One dot a head."
    ),
    "KL between heads": (
        "How differently the heads of a layer look, in nats: a small dot is a head's mean divergence from the other heads"
        " (the head is the first argument), the large dot the layer's mean. 0 where all heads do the same."
    ),
    "CKA": (
        "How alike the features of two layers are over the same images: 1 on the diagonal, near 0 for unrelated ones"
        " (the unbiased estimate may be slightly negative)."
    ),
    "diversity ratio": (
        f"The layers' KL: mean of the last {NUM_LAST} over the mean of all others. About 1: diversity is kept; near 0: it is lost."
    ),
}
"""What each quantity means, for the report and the console."""
