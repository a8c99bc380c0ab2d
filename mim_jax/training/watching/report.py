"""report.html: one file that opens offline, with facts, curves, pictures and the result table of a run."""

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np

from mim_jax.methods.protocol import Picture
from mim_jax.training.watching import bad_images
from mim_jax.training.watching.log import ASIDE
from mim_jax.training.watching.table import LABELS

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

REPORT = "report.html"

CURVES = (
    ("loss", ("train/loss", "eval/loss")),
    ("token accuracy", ("train/token_accuracy", "eval/token_accuracy")),
    ("top-1", ("eval/top1",)),
    ("k-NN top-1", ("eval/knn_top1",)),
    ("learning rate", ("train/lr",)),
    ("gradient norm", ("train/grad_norm",)),
    ("images per second", ("perf/images_per_sec",)),
    ("share of the peak speed (MFU)", ("perf/mfu",)),
    ("share of time waiting for data", ("perf/input_stall",)),
)
"""Title of a panel -> the metrics it shows; a panel none of whose metrics was logged is left out. Metrics of a method
that are not here get panels of their own, after these."""


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    records: Sequence[Mapping[str, Any]],
    rows: Sequence[tuple[str, str, str]],
    picture: Picture | None,
    figures: Sequence[tuple[str, str, Path]],
    bad: Mapping[str, str],
    config_text: str,
) -> None:
    """Writes the report of a run.

    Args:
        facts: name -> value, in order.
        records: of metrics.jsonl.
        rows: of `table.result_rows`.
        figures: title, caption and PNG file of each further picture; left out where the file is not there.
        bad: name -> reason of the images that were replaced.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.jinja").render(
        title=title,
        facts=facts,
        rows=rows,
        curves=data_uri(curves(records)),
        picture=data_uri(examples(picture)) if picture else "",
        caption=picture.caption if picture else "",
        figures=[(name, text, png_uri(file.read_bytes())) for name, text, file in figures if file.exists()],
        bad_count=bad_images.count(bad) if bad else "",
        bad=bad_images.listed(bad),
        bad_more=max(0, len(bad) - bad_images.LISTED),
        config_text=config_text,
    )
    path.write_text(page)


def data_uri(figure: Figure) -> str:
    """A figure as a PNG inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return png_uri(buffer.getvalue())


def png_uri(content: bytes) -> str:
    """A PNG file inside the page."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """One panel for each kind of metric that was logged."""
    panels = curve_panels({key for record in records for key in record})
    rows = max(1, -(-len(panels) // 3))
    figure, axes = plt.subplots(rows, 3, figsize=(12, 2.9 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, keys) in zip(axes.flat, panels, strict=False):
        for key in keys:
            points = [(record["step"], record[key]) for record in records if key in record]
            marker = "o" if len(points) < 15 else ""
            axis.plot(
                *zip(*points, strict=True),
                label=key.split("/")[0],
                marker=marker,
                markersize=3,
                linewidth=1.2,
            )
        axis.set_title(title, fontsize=10)
        if title.startswith("share"):
            axis.set_ylim(0, 1)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(alpha=0.25)
        if len(keys) > 1:
            axis.legend(
                fontsize=8,
                labels=[{"train": "training", "eval": "held-out"}.get(k.split("/")[0], k) for k in keys],
            )
    figure.tight_layout()
    return figure


def curve_panels(logged: Set[str]) -> list[tuple[str, list[str]]]:
    """Title and metrics of every panel: ours, then what else is learnt; baselines and timings have no curve."""
    panels = [(title, [key for key in keys if key in logged]) for title, keys in CURVES]
    shown = {key for _, keys in CURVES for key in keys}
    others = {key.partition("/")[2] for key in logged - shown if key.startswith(("train/", "eval/"))}
    others = {name for name in others if not (name in LABELS or name.endswith(ASIDE))}
    panels += [
        (name.replace("_", " "), [key for key in (f"train/{name}", f"eval/{name}") if key in logged])
        for name in sorted(others)
    ]
    return [(title, keys) for title, keys in panels if keys]


def examples(picture: Picture, limit: int = 8) -> Figure:
    """A row per example, a column per stage."""
    columns = list(picture.columns.items())
    count = min(limit, len(columns[0][1]))
    figure, axes = plt.subplots(count, len(columns), figsize=(1.7 * len(columns), 1.7 * count), squeeze=False)
    for column, (name, images) in enumerate(columns):
        for row in range(count):
            axis = axes[row, column]
            axis.imshow(np.asarray(images[row]), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(textwrap.fill(name, 20), fontsize=8)  # columns are narrow
    figure.tight_layout()
    return figure
