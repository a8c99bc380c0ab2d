"""The paper's figures: distance, entropy and KL by layer, one panel a run; and the maps of CKA."""

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt

from mim_jax.analysis.streaming import BlockMeans
from mim_jax.analysis.verdict import Subject

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

UNITS = {"px": "pixels", "patch": "patches", "unit": "share of the side"}
HEAD, MEAN = "tab:blue", "tab:orange"
ABREAST = 4
"""Panels side by side."""
Values = Callable[[Subject, BlockMeans], npt.NDArray[np.float64]]
Reference = Callable[[BlockMeans], float] | None


def layers_figure(subjects: Sequence[Subject]) -> Figure:
    """Three panels a run, below each other; all runs have the same scales, and at most `ABREAST` stand side by side."""
    units = UNITS[subjects[0].found.blocks[0].units]
    kinds: tuple[tuple[str, Values, Reference], ...] = (
        (f"attention distance\n({units})", _distance, lambda block: block.uniform),
        ("entropy (nats)", lambda subject, block: block.entropy, lambda block: block.largest_entropy),
        ("KL between heads (nats)", lambda subject, block: block.head_kl, None),
    )
    across, bands = min(ABREAST, len(subjects)), -(-len(subjects) // ABREAST)
    size = (1.2 + 3.4 * across, 8.2 * bands)
    figure, axes = plt.subplots(3 * bands, across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (label, values, reference) in enumerate(kinds):
        top = 1.05 * max(_highest(subject, values, reference) for subject in subjects)
        for number, subject in enumerate(subjects):
            axis = axes[3 * (number // ABREAST) + row, number % ABREAST]
            axis.set_axis_on()
            _dots(axis, subject, values, reference)
            axis.set_ylim(0, top)
            if number % ABREAST == 0:
                axis.set_ylabel(label, fontsize=10)
            else:
                axis.set_yticklabels([])
            if row == 0:
                axis.set_title(subject.title, fontsize=10, parse_math=False)
            if row == 2:
                axis.set_xlabel("layer", fontsize=9)
    axes[0, 0].legend(fontsize=8, loc="lower left", framealpha=0.8)
    return figure


def _highest(subject: Subject, values: Values, reference: Reference) -> float:
    blocks = subject.found.blocks
    own = max(float(np.nanmax(values(subject, block), initial=0.0)) for block in blocks)
    return own if reference is None else max(own, *(reference(block) for block in blocks))


def _distance(subject: Subject, block: BlockMeans) -> npt.NDArray[np.float64]:
    return block.distance_by(subject.cls)


def _dots(axis: Axes, subject: Subject, values: Values, reference: Reference) -> None:
    blocks = subject.found.blocks
    layers = np.arange(1, len(blocks) + 1)
    heads = [np.asarray(values(subject, block)) for block in blocks]
    places = np.concatenate([np.full(len(own), at) for at, own in zip(layers, heads, strict=True)])
    axis.scatter(
        places, np.concatenate(heads), s=14, alpha=0.55, color=HEAD, linewidths=0, zorder=3, label="a head"
    )
    axis.plot(
        layers,
        [own.mean() for own in heads],
        "o-",
        color=MEAN,
        alpha=0.8,
        markersize=8,
        linewidth=1,
        label="mean",
    )
    if reference is not None:
        even = [reference(block) for block in blocks]
        axis.plot(layers, even, "--", color="0.4", linewidth=1, label="even attention")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlim(0.5, len(blocks) + 0.5)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)


def cka_figure(subjects: Sequence[Subject], first: int) -> Figure:
    """A map of all pairs of layers for each run, one scale; `first`: number of the first layer (0 = the embedding)."""
    across, rows = min(ABREAST, len(subjects)), -(-len(subjects) // ABREAST)
    size = (1.6 + 3.2 * across, 3.6 * rows)
    figure, axes = plt.subplots(rows, across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(subjects) :]:
        axis.set_axis_off()
    for axis, subject in zip(axes.flat, subjects, strict=False):
        cka = subject.found.cka
        assert cka is not None
        edges = (first - 0.5, first + len(cka) - 0.5)
        image = axis.imshow(cka, vmin=0, vmax=1, cmap="viridis", origin="lower", extent=(*edges, *edges))
        axis.set_title(subject.title, fontsize=10, parse_math=False)
        axis.set_xlabel("layer", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("layer", fontsize=9)
    figure.colorbar(image, ax=list(axes.flat), label="CKA", shrink=0.85)
    return figure
