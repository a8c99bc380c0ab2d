"""A page that shows what the codes of a tokenizer stand for: patches of images by code, and how often each code is used."""

import pathlib
from collections.abc import Mapping, Sequence

import jinja2
import matplotlib
import numpy as np
import numpy.typing as npt
from etils.epath import Path

from mim_jax.data import Dataset, ImageView, evaluation_batches
from mim_jax.storage import write_text
from mim_jax.tokenizers.assignment import usage_and_perplexity
from mim_jax.training.monitoring.report import figure_uri

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

Counts = npt.NDArray[np.int64]
Examples = Sequence[tuple[int, npt.NDArray[np.uint8]]]
"""Code -> patches uint8 [n, h, w, 3] that have it."""

CODES = 32
PATCHES = 10
SHOWN_IMAGES = 1024
"""How many of the most used codes are shown, by how many patches each, from how many images of the data set at most."""


def most_used(
    shown: Dataset, view: ImageView, grid: tuple[int, int], counts: Counts, ids: npt.NDArray[np.integer]
) -> Examples:
    """Patches of the most used codes, no two of one image, and spread over the images that have the code.

    Args:
        shown: some images, spread over a data set: many lie in the order of their classes.
        view: the tokenizer's view. grid: rows and columns of ids. counts: int [V].
        ids: integers [n, L] of all `shown`.
    """
    limit = len(shown)
    images = np.concatenate([b["image"][b["valid"]] for b in evaluation_batches(shown, view, batch_size=64)])
    height, width = view.size[0] // grid[0], view.size[1] // grid[1]
    cells = (
        images.reshape(limit, grid[0], height, grid[1], width, 3)
        .swapaxes(2, 3)
        .reshape(limit, -1, height, width, 3)
    )
    examples = []
    for code in np.argsort(-counts, kind="stable")[:CODES]:
        image, cell = np.nonzero(np.asarray(ids) == code)
        image, first = np.unique(image, return_index=True)
        count = min(PATCHES, len(image))
        at = np.arange(count) * len(image) // max(count, 1)
        examples.append((int(code), cells[image[at], cell[first][at]]))
    return examples


def write_codes_report(
    path: Path, title: str, properties: Mapping[str, str], counts: Counts, examples: Examples
) -> None:
    """Writes the page: one file, opens offline. counts: int [V], how often each code was given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    usage, perplexity = usage_and_perplexity(counts)
    numbers = {
        "codes": f"{len(counts)}",
        "used": f"{100 * usage:.2f} % ({int((counts == 0).sum())} are never used)",
        "perplexity": f"{perplexity:.1f}",
        "most used code": f"{100 * counts.max() / counts.sum():.2f} % of all ids",
    }
    page = environment.get_template("codes_report.html.jinja").render(
        title=title,
        facts={**properties, **numbers},
        usage=figure_uri(_usage(counts)),
        codes=figure_uri(_codes(examples)),
    )
    write_text(path, page)


def _usage(counts: Counts) -> Figure:
    """Share of the ids of each code, codes in falling order, against what equal use would be."""
    figure, axis = plt.subplots(figsize=(8, 2.8))
    shares = np.sort(counts)[::-1] / counts.sum()
    axis.fill_between(np.arange(1, len(shares) + 1), shares, step="mid", alpha=0.6)
    axis.axhline(1 / len(shares), color="black", linewidth=0.8, linestyle="--", label="all codes alike")
    axis.set_xlabel("codes, the most used first")
    axis.set_ylabel("share of all ids")
    axis.set_yscale("log")
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def _codes(examples: Examples) -> Figure:
    """A row a code in two columns of rows."""
    rows = -(-len(examples) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9, 0.48 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (code, patches) in zip(axes.T.flat, examples, strict=False):
        if not len(patches):
            continue
        blank = np.full((PATCHES - len(patches), *patches.shape[1:]), 208, np.uint8)
        padded = np.pad(
            np.concatenate([patches, blank]), ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255
        )
        axis.imshow(np.concatenate(list(padded), axis=1), interpolation="nearest")
        axis.text(-0.02, 0.5, str(code), transform=axis.transAxes, ha="right", va="center", fontsize=7)
    figure.subplots_adjust(left=0.05, right=0.99, top=0.99, bottom=0.01, wspace=0.12, hspace=0.15)
    return figure
