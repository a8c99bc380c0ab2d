"""The confusion matrix as a picture: with the names of the classes, and where these are too many, the commonest mistakes."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from etils.epath import Path
from sklearn.metrics import confusion_matrix

from mim_jax.storage import atomic_write
from mim_jax.transfer.metrics import Labels, Scores

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NUMBERED = 20
"""Up to so many classes every cell holds its percentage."""
NAMED = 60
"""Up to so many classes rows and columns have names."""
MISTAKES = 12
"""Listed below a matrix without numbers in its cells."""
LONGEST = 24
"""Characters of a name that are shown."""


def draw_confusion(path: Path, scores: Scores, labels: Labels, names: Sequence[str]) -> None:
    """Writes the matrix as a PNG: rows are true classes, columns predicted ones, percentages of a row.

    Args:
        scores: float [n, C]. labels: int [n]. names: of the classes [C].
    """
    classes = np.arange(scores.shape[1])
    shares = confusion_matrix(labels, scores.argmax(axis=1), labels=classes, normalize="true")
    shown = [shortened(name) for name in names]
    few, named = len(classes) <= NUMBERED, len(classes) <= NAMED
    side = min(9.0, 2.8 + (0.38 if few else 0.17) * len(classes))
    figure, axis = plt.subplots(figsize=(side, side))
    image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if named:
        size = 8 if few else max(4.5, 8 - 0.06 * len(classes))
        axis.set_xticks(classes, shown, rotation=90, fontsize=size, parse_math=False)
        axis.set_yticks(classes, shown, fontsize=size, parse_math=False)
    if few:
        for row, column in np.argwhere(shares >= 0.005):
            axis.text(
                column,
                row,
                f"{100 * shares[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if shares[row, column] > 0.5 else "black",
            )
    else:
        bar = figure.colorbar(image, ax=axis, shrink=0.7)
        bar.set_label("share of the true class")
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if not few and (lines := mistakes(shares, shown)):
        text = "Most frequent confusions:\n" + "\n".join(lines)
        figure.text(0.1, -0.02, text, va="top", fontsize=8, parse_math=False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def mistakes(shares: npt.NDArray[np.float64], names: Sequence[str]) -> list[str]:
    """The largest shares off the diagonal [C, C], a line each: 'cat predicted as dog: 12 %'."""
    off = np.where(np.eye(len(shares), dtype=bool), 0.0, shares)
    largest = np.argsort(-off, axis=None, kind="stable")[:MISTAKES]
    found = [(int(at) // len(shares), int(at) % len(shares)) for at in largest if off.flat[at] > 0]
    return [
        f"{names[true]} predicted as {names[other]}: {100 * off[true, other]:.0f} %" for true, other in found
    ]


def shortened(name: str) -> str:
    """A name that leaves room for the matrix."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
