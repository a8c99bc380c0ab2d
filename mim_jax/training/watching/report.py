"""report.html: one file that opens offline, with facts, curves, pictures and the result table of a run."""

import base64
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
import numpy as np
from etils.epath import Path
from PIL import Image

from mim_jax.methods.method import ImageGrid
from mim_jax.storage import write_text
from mim_jax.training.watching import bad_images, curves
from mim_jax.training.watching.table import Rows

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

REPORT = "report.html"
EXAMPLES = 8
"""Held-out images that are drawn."""
PIXELATED = 96
"""Pictures of up to so many pixels a side are enlarged without smoothing: their pixels are what is learnt."""


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    rows: Rows,
    picture: ImageGrid | None,
    figures: Sequence[tuple[str, str, Path]],
    bad: Mapping[str, str],
    config_text: str,
    names: Sequence[str] = (),
    start: str = "untrained",
) -> None:
    """Writes the report of a run.

    Args:
        facts: name -> value, in order.
        records: of metrics.jsonl.
        rows: of `table.result_rows`.
        figures: title, caption and PNG file of each further picture; left out where the file is not there.
        bad: name -> reason of the images that were replaced.
        names: the class of each example of `picture`; empty = they have none.
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
        facts=facts,
        rows=rows,
        start=start,
        started=any(row[1] for row in rows),
        curves=[(panel.title, data_uri(curves.draw(panel))) for panel in panels],
        sentences=sentences,
        columns=list(picture.columns) if picture else [],
        examples=examples(picture, names) if picture else [],
        named=any(names),
        caption=picture.caption if picture else "",
        figures=[(name, text, png_uri(file.read_bytes())) for name, text, file in figures if file.exists()],
        bad_count=bad_images.count(bad) if bad else "",
        bad=bad_images.listed(bad),
        bad_more=max(0, len(bad) - bad_images.LISTED),
        config_text=config_text,
    )
    write_text(path, page)


def examples(picture: ImageGrid, names: Sequence[str]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """A row per example: its class ("" = none), and of each column the image and whether its pixels are few."""
    columns = list(picture.columns.values())
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


def data_uri(figure: Figure) -> str:
    """A figure as a PNG inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    return png_uri(buffer.getvalue())


def png_uri(content: bytes) -> str:
    """A PNG file inside the page."""
    return "data:image/png;base64," + base64.b64encode(content).decode()
