"""The task `gallery`: every corruption of one image side by side, as gallery.png."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from mim_jax.config.resolve import resolve
from mim_jax.config.schema import Config
from mim_jax.corruptions.misalignment import area_resize
from mim_jax.data import Dataset, evaluation_batches, open_dataset
from mim_jax.methods import build_method, complete_options
from mim_jax.methods.beyond_masking import BeyondMasking
from mim_jax.methods.method import Variables, View
from mim_jax.methods.pixel_grid import draw_images
from mim_jax.progress import log
from mim_jax.storage import atomic_write
from mim_jax.targets.pixels import unpatchify
from mim_jax.training.budget import check_memory
from mim_jax.training.run_directory import RunDirectory

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

TASKS = ("mask", "zoom_in", "zoom_in+mask", "zoom_out", "distort", "blur", "decolorize", "zoom_in+blur")
COLUMNS = ("image", "input of the network", "target", "scored part")
LEGEND = "orange: what one token reads; cyan: what the same token must predict; dark: not scored"
READS, PAINTS = "tab:orange", "tab:cyan"
TOKEN = (3, 10)
"""Row and column (of 14 x 14) of the token whose two places are drawn; scaled to other grids."""


def run(config: Config, workdir: str | os.PathLike[str], overwrite: bool = False) -> int:
    """Draws the gallery of the first held-out image of `data.source`; the exit code.

    Args:
        overwrite: whether the gallery that lies there is replaced: moved aside, and removed at the end.
    """
    with RunDirectory(workdir, "gallery", overwrite=overwrite) as run_directory:
        return _run(config, run_directory)


def _run(config: Config, run_directory: RunDirectory) -> int:
    dataset = open_dataset(
        config.data.source,
        config.data.test_split,
        data_dir=config.data.data_dir,
        on_bad_image=config.data.on_bad_image,
    )
    figure, axes = plt.subplots(len(TASKS), 4, figsize=(7.2, 1.8 * len(TASKS)), squeeze=False)
    for row, task in zip(axes, TASKS, strict=True):
        method = _method(config, task, dataset)
        batch = next(
            iter(
                evaluation_batches(dataset, method.view(train=False), batch_size=1, limit=1, seed=config.seed)
            )
        )
        keys = jax.random.split(jax.random.key(config.seed), 1)
        view = jax.jit(lambda keys, batch, method=method: method.corrupt(keys, batch, Variables()))(
            keys, batch
        )
        _draw_row(method, view, row)
        row[0].set_ylabel(task, fontsize=9)
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.4, rect=(0, 0.015, 1, 1))
    figure.text(0.5, 0.004, LEGEND, ha="center", fontsize=9)
    run_directory.acquire(config)
    page = run_directory.path / "gallery.png"
    with atomic_write(page) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
    run_directory.discard_replaced()
    log(f"gallery: {page}")
    log(LEGEND)
    return 0


def _method(config: Config, task: str, dataset: Dataset) -> BeyondMasking:
    chosen = dataclasses.replace(config, method={**config.method, "task": task})
    resolved = resolve(
        chosen, num_examples=len(dataset), num_devices=jax.device_count(), platform=jax.default_backend()
    )
    method = build_method(complete_options(resolved))
    assert isinstance(method, BeyondMasking)
    check_memory(resolved, method, method.train_view(dataset))
    return method


def _draw_row(method: BeyondMasking, view: View, row: Any) -> None:
    side, outer, patch = method.side, method.source_side, method.vit.patch
    grid = method.vit.grid
    original = view["original"]
    seen = view["patches"]
    hidden = jnp.zeros(seen.shape[:2], bool).at[0, view["hidden"][0]].set(True)
    network = unpatchify(jnp.where(hidden[..., None], 0.0, seen), grid)
    pictures = (original, network, area_resize(original, (side, side)), _compared(method, view))
    for axis, picture in zip(row, pictures, strict=True):
        axis.imshow(draw_images(method, picture)[0])
        axis.set_xticks([])
        axis.set_yticks([])
    row[3].imshow(_shade(method, hidden), interpolation="nearest")
    at = np.array(TOKEN) * np.array(grid) // 14 * patch  # top-left of the token on the encoder's raster
    _mark(row[1], at, patch, READS)
    _mark(row[2], at, patch, PAINTS)
    _mark(row[0], at * outer / side, patch * outer / side, PAINTS)
    shift = _network_to_image(method, view)
    if shift is not None:
        _mark(row[0], at + shift, patch, READS)


def _compared(method: BeyondMasking, view: View) -> jax.Array:
    """The original on the raster where the loss compares."""
    return method.canvas(view["original"], view) if method.geometry == "zoom_out" else view["original"]


def _shade(method: BeyondMasking, hidden: jax.Array) -> np.ndarray:
    """Black with an alpha that leaves the scored part bright; on the raster of `_compared`."""
    cells = hidden if method.masked else jnp.ones_like(hidden)
    patches = jnp.broadcast_to(cells[..., None], (*cells.shape, 3 * method.vit.patch**2)).astype(jnp.float32)
    scored = np.asarray(unpatchify(patches, method.vit.grid))[0, :, :, 0]
    if method.geometry == "zoom_in":
        margin = (method.source_side - method.side) // 2
        scored = np.pad(scored, margin, constant_values=1.0)
    return np.concatenate([np.zeros((*scored.shape, 3)), 0.75 * (1 - scored[..., None])], axis=-1)


def _network_to_image(method: BeyondMasking, view: View) -> np.ndarray | None:
    """What to add to a place on the network's raster to find it in the image; None where no shift does it."""
    if "distort" in method.styles:
        return None
    if method.geometry == "zoom_in":
        return np.full(2, (method.source_side - method.side) // 2)
    if method.geometry == "zoom_out":
        return -np.asarray(view["offset"][0])
    return np.zeros(2)


def _mark(axis: Axes, corner: np.ndarray, size: float, colour: str) -> None:
    axis.add_patch(
        Rectangle((corner[1] - 0.5, corner[0] - 0.5), size, size, fill=False, edgecolor=colour, linewidth=1.4)
    )
