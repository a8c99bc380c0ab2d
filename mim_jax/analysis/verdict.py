"""Whether some runs show what the paper claims of masked and of supervised pre-training (docs/papers/dark_secrets.md 0, 2.4).

Thresholds are ours: the paper states none. A verdict speaks of the runs that were given and of nothing else.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from mim_jax.analysis.cka import mean_off_diagonal
from mim_jax.analysis.streaming import NetworkMeans
from mim_jax.analysis.summaries import GLOBAL, LAST, LOCAL
from mim_jax.config.schema import Config
from mim_jax.methods.method import Method

Word = Literal["seen", "not seen", "cannot say"]
KINDS = ("mim", "supervised", "other")
KIND_WORDS = {
    "mim": "masked pre-training",
    "supervised": "supervised from scratch",
    "other": "fine-tuned, probed or unknown",
}
"""What people are shown of a kind."""

MOSTLY = 0.5
"""A layer from this share of global heads on counts as global."""
KEPT = 0.5
"""A diversity ratio from here on counts as kept in the last layers."""
LOST = 0.1
"""A diversity ratio up to here counts as nearly gone."""
LEAST_KL = 0.01
"""Nats. Below this mean KL in the layers before the last three no heads differ, so a ratio says nothing (docs/papers/dark_secrets.md 3: 0.0004
where heads are alike, 0.9 where they are not)."""
MARGIN = 0.05
"""By how much one CKA must exceed another."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run that was looked at. kind: mim | supervised (labels from scratch) | other (fine-tuned, probed)."""

    name: str
    kind: str
    found: NetworkMeans
    cls: str = "drop"

    @property
    def title(self) -> str:
        """Two lines: its name, and what it was trained on."""
        return f"{self.name}\n({KIND_WORDS[self.kind]})"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the verdict table.

    numbers: run -> its number, as text; beside: run -> what else to know of it, or ''. why: in words, where it cannot be said.
    """

    claim: str
    statement: str
    quantity: str
    threshold: str
    numbers: dict[str, str]
    beside: dict[str, str]
    word: Word
    why: str = ""


def kind_of(config: Config, method: Method) -> str:
    """What a run was trained on."""
    if not method.supervised:
        return "mim"
    return "other" if config.init else "supervised"


def findings(subjects: Sequence[Subject]) -> list[Finding]:
    """The table: two halves of C1 and of C2, and C6."""
    last = f"last {LAST} layers"
    ratio = f"diversity ratio ({last} to the others)"
    return [
        _about(
            "C1",
            "masked: local heads in every layer",
            "smallest share of local heads of a layer",
            "> 0 in every masked run",
            subjects,
            "mim",
            lambda s: float(s.found.local(s.cls).min()),
            lambda value: value > 0,
        ),
        _about(
            "C1",
            f"supervised: local heads in lower layers only, global ones in the {last}",
            f"mean share of global heads, {last}; or 0 where a head there is local",
            f"≥ {MOSTLY} in every supervised run",
            subjects,
            "supervised",
            _global_at_the_end,
            lambda value: value >= MOSTLY,
            no_local_heads,
        ),
        _about(
            "C2",
            "masked: heads stay different",
            ratio,
            f"≥ {KEPT} in every masked run",
            subjects,
            "mim",
            lambda s: s.found.diversity_ratio,
            lambda value: value >= KEPT,
            alike_everywhere,
        ),
        _about(
            "C2",
            f"supervised: heads become alike in the {last}",
            ratio,
            f"≤ {LOST} in every supervised run",
            subjects,
            "supervised",
            lambda s: s.found.diversity_ratio,
            lambda value: value <= LOST,
            alike_everywhere,
        ),
        _alike(subjects),
    ]


def too_shallow(subject: Subject) -> str:
    """Why nothing can be said of a run's last layers, or ''."""
    depth = len(subject.found.blocks)
    return f"{subject.name} has {depth} layers: none before the last {LAST}" if depth <= LAST else ""


def no_local_heads(subject: Subject) -> str:
    """Why a run cannot lose its local heads, or ''."""
    if too_shallow(subject):
        return too_shallow(subject)
    lower = subject.found.local(subject.cls)[:-LAST]
    return "" if lower.max() > 0 else f"{subject.name} has no local heads in its lower layers either"


def alike_everywhere(subject: Subject) -> str:
    """Why a run cannot lose the diversity of its heads, or ''."""
    if too_shallow(subject):
        return too_shallow(subject)
    if math.isnan(subject.found.diversity_ratio) or subject.found.layer_kl[:-LAST].mean() < LEAST_KL:
        return f"the heads of {subject.name} are alike in its lower layers already (untrained?)"
    return ""


def _global_at_the_end(subject: Subject) -> float:
    local, far = subject.found.local(subject.cls)[-LAST:], subject.found.everywhere(subject.cls)[-LAST:]
    return 0.0 if local.max() > 0 else float(far.mean())


def _about(
    claim: str,
    statement: str,
    quantity: str,
    threshold: str,
    subjects: Sequence[Subject],
    kind: str,
    measure: Callable[[Subject], float],
    holds: Callable[[float], bool],
    prevents: Callable[[Subject], str] = lambda subject: "",
) -> Finding:
    """A statement about all runs of one kind; the others' numbers stand beside them.

    prevents: why nothing can be said of a run, or ''.
    """
    values = {s.name: measure(s) for s in subjects}
    own = [s for s in subjects if s.kind == kind]
    why = next(filter(None, map(prevents, own)), "")
    if not own:
        why = f"no {'masked' if kind == 'mim' else kind} run is among them"
    word: Word = "seen" if all(holds(values[s.name]) for s in own) else "not seen"
    return Finding(
        claim,
        statement,
        quantity,
        threshold,
        {name: _text(value) for name, value in values.items()},
        {s.name: shares_at_the_end(s) if claim == "C1" else "" for s in subjects},
        "cannot say" if why else word,
        why,
    )


def shares_at_the_end(subject: Subject) -> str:
    """Mean shares of local and of global heads in the last layers, in words."""
    local, far = subject.found.local(subject.cls)[-LAST:], subject.found.everywhere(subject.cls)[-LAST:]
    return f"last {LAST}: local {local.mean():.2f}, global {far.mean():.2f}"


def _alike(subjects: Sequence[Subject]) -> Finding:
    """C6 compares: every masked run's layers are more alike than those of every supervised run."""
    values = {
        s.name: float("nan") if s.found.cka is None else mean_off_diagonal(s.found.cka) for s in subjects
    }
    masked, supervised = ([values[s.name] for s in subjects if s.kind == kind] for kind in KINDS[:2])
    why = "" if masked and supervised else "it takes a masked and a supervised run"
    if not why and np.isnan([*masked, *supervised]).any():
        why = "CKA was not computed"
    word: Word = "cannot say"
    if not why:
        word = "seen" if min(masked) - max(supervised) >= MARGIN else "not seen"
    return Finding(
        "C6",
        "layers of masked runs are more alike than those of supervised runs",
        "mean CKA of different layers",
        f"masked − supervised ≥ {MARGIN}",
        {name: _text(value) for name, value in values.items()},
        dict.fromkeys(values, ""),
        word,
        why,
    )


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


AXES = {
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
        f"The layers' KL: mean of the last {LAST} over the mean of all others. About 1: diversity is kept; near 0: it is lost."
    ),
}
"""What each quantity means, for the report and the console."""
