"""report.html: one file that opens offline, with facts, curves, pictures and the result table of a run; first_batch.png before it."""

import base64
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
import numpy as np
from etils.epath import Path
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from mim_jax.methods.method import ImageGrid
from mim_jax.storage import atomic_write, write_text
from mim_jax.training.monitoring import curves
from mim_jax.training.monitoring.results_table import Rows
from mim_jax.training.monitoring.run_info import MAX_LISTED_IMAGES, first_bad_images, format_image_count

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

REPORT = "report.html"
EXAMPLES = 8
"""Held-out images that are drawn."""
FIRST_BATCH = "first_batch.png"
FIRST_BATCH_IMAGES, BATCH_COLUMNS = 32, 8
BATCH_GAP, BATCH_INCHES = 0.06, 1.35  # between images, in sides of one; side of one
PIXELATED = 96
"""Pictures of up to so many pixels a side are enlarged without smoothing: their pixels are what is learnt."""


def write_report(
    path: Path,
    *,
    title: str,
    info: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    rows: Rows,
    image_grid: ImageGrid | None,
    figures: Sequence[tuple[str, str, Path]],
    bad: Mapping[str, str],
    parameters: str,
    config_text: str,
    names: Sequence[str] = (),
    start: str = "untrained",
) -> None:
    """Writes the report of a run.

    Args:
        info: name -> value, in order.
        records: of metrics.jsonl.
        rows: of `result_rows`.
        figures: title, caption and PNG file of each further picture; left out where the file is not there.
        parameters: the table of their names and shapes.
        bad: name -> reason of the images that were replaced.
        names: the class of each example of `image_grid`; empty = they have none.
        start: what the network of step 0 is called.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    panels, sentences = curves.panels(records, start)
    page = environment.get_template("report.html.jinja").render(
        title=title,
        info=info,
        rows=rows,
        start=start,
        started=any(row[1] for row in rows),
        curves=[(panel.title, figure_uri(curves.draw(panel))) for panel in panels],
        sentences=sentences,
        columns=list(image_grid.columns) if image_grid else [],
        examples=examples(image_grid, names) if image_grid else [],
        named=any(names),
        caption=image_grid.caption if image_grid else "",
        figures=[(name, text, png_uri(file.read_bytes())) for name, text, file in figures if file.exists()],
        bad_count=format_image_count(bad) if bad else "",
        bad=first_bad_images(bad),
        bad_more=max(0, len(bad) - MAX_LISTED_IMAGES),
        parameters=parameters,
        config_text=config_text,
    )
    write_text(path, page)


def examples(image_grid: ImageGrid, names: Sequence[str]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """A row per example: its class ("" = none), and of each column the image and whether its pixels are few."""
    columns = list(image_grid.columns.values())
    rows = []
    for row in range(min(EXAMPLES, len(columns[0]))):
        name = names[row] if row < len(names) else ""
        images = [np.asarray(images[row]) for images in columns]
        rows.append((name, [(image_uri(image), max(image.shape[:2]) <= PIXELATED) for image in images]))
    return rows


def image_uri(image: Any) -> str:
    """An image, uint8 [H, W, 3], as a PNG inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return png_uri(buffer.getvalue())


def figure_uri(figure: Figure) -> str:
    """A figure as a PNG inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    return png_uri(buffer.getvalue())


def png_uri(content: bytes) -> str:
    """A PNG file inside the page."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def draw_first_batch(path: Path, batch: dict[str, np.ndarray], class_names: Sequence[str]) -> None:
    """A grid of images, mirrored where the batch says so, each with its label (a name, a number, or nothing)."""
    labels = batch.get("label", np.full(len(batch["image"]), -1))
    images = np.where(_flips(batch)[:, None, None, None], batch["image"][:, :, ::-1], batch["image"])
    count, height, width = images.shape[:3]
    columns = min(BATCH_COLUMNS, count)
    rows = -(-count // columns)
    step_x, step_y = 1 + BATCH_GAP, height / width + 0.2
    span_x, span_y = columns * step_x + BATCH_GAP, rows * step_y + BATCH_GAP
    figure = Figure(figsize=(BATCH_INCHES * span_x, BATCH_INCHES * span_y))
    FigureCanvasAgg(figure)  # not pyplot: no global state, no display
    axis = figure.add_axes((0, 0, 1, 1))
    for number, image in enumerate(images):
        x, y = (number % columns) * step_x, (number // columns) * step_y
        axis.imshow(image, extent=(x, x + 1, y + height / width, y), interpolation="nearest")
        words = label_text(int(labels[number]), class_names)
        axis.text(
            x + 0.5, y + height / width + 0.02, words, ha="center", va="top", fontsize=7, parse_math=False
        )
    axis.set_xlim(-BATCH_GAP, span_x - BATCH_GAP)
    axis.set_ylim(span_y - BATCH_GAP, -BATCH_GAP)
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


def _flips(batch: dict[str, np.ndarray]) -> np.ndarray:
    return batch["flip"] if "flip" in batch else np.zeros(len(batch["image"]), bool)
