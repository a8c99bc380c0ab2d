"""first_batch.png: what the network is given, before hours go by. The images of the first batch as the loader gives them."""

from collections.abc import Sequence

import numpy as np
from etils.epath import Path
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mim_jax.storage import atomic_write

FILE = "first_batch.png"
SHOWN, COLUMNS = 32, 8
GAP, INCHES = 0.06, 1.35  # between images, in sides of one; side of one

HostBatch = dict[str, np.ndarray]


def draw(path: Path, batch: HostBatch, class_names: Sequence[str]) -> None:
    """A grid of images, mirrored where the batch says so, each with its label (a name, a number, or nothing)."""
    labels = batch.get("label", np.full(len(batch["image"]), -1))
    images = np.where(_flips(batch)[:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
    count, height, width = images.shape[:3]
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    step_x, step_y = 1 + GAP, height / width + 0.2
    span_x, span_y = columns * step_x + GAP, rows * step_y + GAP
    figure = Figure(figsize=(INCHES * span_x, INCHES * span_y))
    FigureCanvasAgg(figure)  # not pyplot: no global state, no display
    axis = figure.add_axes((0, 0, 1, 1))
    for number, image in enumerate(images):
        x, y = (number % columns) * step_x, (number // columns) * step_y
        axis.imshow(image, extent=(x, x + 1, y + height / width, y), interpolation="nearest")
        words = label_text(int(labels[number]), class_names)
        axis.text(
            x + 0.5, y + height / width + 0.02, words, ha="center", va="top", fontsize=7, parse_math=False
        )
    axis.set_xlim(-GAP, span_x - GAP)
    axis.set_ylim(span_y - GAP, -GAP)
    axis.set_aspect("auto")
    axis.set_axis_off()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def label_text(label: int, class_names: Sequence[str]) -> str:
    """The name of a class, its number where it has none, nothing for an image without a label."""
    if label < 0:
        return ""
    name = class_names[label] if label < len(class_names) else str(label)
    return name if len(name) <= 18 else name[:17] + "…"


def _flips(batch: HostBatch) -> np.ndarray:
    return batch["flip"] if "flip" in batch else np.zeros(len(batch["image"]), bool)
