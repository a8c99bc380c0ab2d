"""The figures of an analysis: the paper's plots by layer, maps of CKA, attention over an image, rollout."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mim_jax.analysis.measure import BlockMeans, encoder_attention
from mim_jax.analysis.verdict import RunSummary
from mim_jax.methods.method import Method
from mim_jax.models.encoder import AttentionGeometry
from mim_jax.models.vit import Params

matplotlib.use("Agg")

Array = npt.NDArray[np.float32]

MAX_LAYERS, MAX_HEADS = 4, 6
"""At most so many are drawn per run."""


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """Attention over some images, uint8 [B, H, W, 3].

    layers: layer (from 1) -> attention of the patch in the middle, [B, heads, rows, columns]; only layers with one window. query: (row, column) of that patch, of each layer. rollout: [B, rows, columns], None where
    windows or merging forbid it.
    """

    images: npt.NDArray[np.uint8]
    layers: dict[int, Array]
    query: dict[int, tuple[int, int]]
    rollout: Array | None
    names: tuple[str, ...] = ()  # the class of each image; '' = none


def attention_maps(
    method: Method, params: Params, images: npt.NDArray[np.uint8], names: tuple[str, ...] = ()
) -> AttentionMaps:
    """One compiled forward; only the rows that are drawn leave the device. names: the class of each image."""
    geometry = method.net.geometry
    drawn = spread_layers([of_layer.windows == 1 for of_layer in geometry])
    middle = {layer: grid_of(geometry[layer]) for layer in drawn}
    query = {layer: (rows // 2, columns // 2) for layer, (rows, columns) in middle.items()}
    has_rollout = all(w.windows == 1 and len(w.coordinates) == len(geometry[0].coordinates) for w in geometry)
    if not drawn:
        return AttentionMaps(images, {}, {}, None, names)

    @jax.jit
    def attention_rows(params: Params, images: jax.Array) -> tuple[dict[int, jax.Array], jax.Array | None]:
        _, logs = encoder_attention(method, params, images)
        rows = {}
        for layer in drawn:
            prefix, (row, column) = geometry[layer].prefix, query[layer]
            at = prefix + row * middle[layer][1] + column
            rows[layer] = jnp.exp(logs[layer][:, 0, :, at, prefix:])
        return rows, rollout(
            [jnp.exp(log[:, 0]) for log in logs], geometry[0].prefix
        ) if has_rollout else None

    rows, flat_rollout = attention_rows(params, jnp.asarray(images))
    layers = {n + 1: np.asarray(x).reshape(*x.shape[:2], *middle[n]) for n, x in rows.items()}
    grid = grid_of(geometry[0])
    grid_rollout = None if flat_rollout is None else np.asarray(flat_rollout).reshape(-1, *grid)
    return AttentionMaps(images, layers, {n + 1: at for n, at in query.items()}, grid_rollout, names)


def rollout(weights: Sequence[jax.Array], prefix: int) -> jax.Array:
    """How much of each patch arrives, by attention alone, in CLS (without CLS: in the mean patch) of the last layer.

    Abnar and Zuidema 2020: heads are averaged, the residual branch counts as much as the attention, layers are multiplied.

    Args:
        weights: of every layer, [B, H, N, N].
    Returns:
        [B, patches], sums to 1 with what arrives of CLS.
    """
    total: jax.Array | None = None
    for layer in weights:
        mean = 0.5 * jnp.mean(layer, axis=1) + 0.5 * jnp.eye(layer.shape[-1], dtype=layer.dtype)
        total = mean if total is None else jnp.matmul(mean, total, precision="highest")
    assert total is not None
    arrived = total[:, 0] if prefix else jnp.mean(total, axis=1)
    return arrived[:, prefix:]


def spread_layers(usable: Sequence[bool]) -> list[int]:
    """At most `MAX_LAYERS` of the usable layers, evenly spread, the first and the last among them."""
    candidates = [layer for layer, is_usable in enumerate(usable) if is_usable]
    indices = np.linspace(0, len(candidates) - 1, min(MAX_LAYERS, len(candidates)))
    return [candidates[round(float(index))] for index in indices]


def grid_of(geometry: AttentionGeometry) -> tuple[int, int]:
    """Rows and columns of a window."""
    rows, columns = geometry.coordinates.max(axis=0) + 1
    return int(rows), int(columns)


def heads_figure(maps: AttentionMaps, name: str) -> Figure:
    """One row per layer, one column per head: where the marked patch of the first image looks."""
    most = max(min(x.shape[1], MAX_HEADS) for x in maps.layers.values())
    shape = (len(maps.layers), 1 + most)
    figure, axes = plt.subplots(*shape, figsize=(1.75 * shape[1], 1.95 * shape[0]), squeeze=False)
    for row, (layer, weights) in zip(axes, maps.layers.items(), strict=True):
        grid, at = weights.shape[2:], maps.query[layer]
        row[0].imshow(maps.images[0])
        _mark_patch(row[0], maps.images[0].shape, grid, at)
        row[0].set_title(f"layer {layer}", fontsize=9)
        for head, axis in enumerate(row[1:]):
            axis.set_axis_off()
            if head < min(weights.shape[1], MAX_HEADS):
                _overlay(axis, maps.images[0], weights[0, head])
                _mark_patch(axis, maps.images[0].shape, grid, at)
                axis.set_title(f"head {head + 1}, up to {weights[0, head].max():.2f}", fontsize=8)
        row[0].set_axis_off()
    figure.suptitle(name, fontsize=10, parse_math=False)
    figure.tight_layout()
    return figure


def rollout_figure(maps: Sequence[tuple[str, AttentionMaps]]) -> Figure:
    """One row per image, one column per run: the rollout over the image. Runs without one are left out.

    Runs on different images have a column for these beside their rollout.
    """
    shown = [(name, run_maps) for name, run_maps in maps if run_maps.rollout is not None]
    same = all(np.array_equal(run_maps.images, shown[0][1].images) for _, run_maps in shown)
    count = min(len(run_maps.images) for _, run_maps in shown)
    columns = 1 + len(shown) if same else 2 * len(shown)
    figure, axes = plt.subplots(count, columns, figsize=(1.8 * columns, 1.9 * count), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (name, run_maps) in enumerate(shown):
        column = number + 1 if same else 2 * number + 1
        rolled = run_maps.rollout
        assert rolled is not None
        for row in range(count):
            if not same or number == 0:
                axes[row, column - 1].imshow(run_maps.images[row])
                if run_maps.names:
                    axes[row, column - 1].set_title(run_maps.names[row], fontsize=8, parse_math=False)
            _overlay(axes[row, column], run_maps.images[row], rolled[row])
        axes[0, column].set_title(name, fontsize=9, parse_math=False)
    figure.tight_layout()
    return figure


def _overlay(axis: Axes, image: npt.NDArray[np.uint8], weights: Array) -> None:
    """A map over a grey image; dark = nothing, bright = the largest weight of the map."""
    height, width = image.shape[:2]
    axis.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    axis.imshow(
        weights,
        cmap="inferno",
        alpha=0.72,
        interpolation="nearest",
        vmin=0,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    )


def _mark_patch(axis: Axes, image: tuple[int, ...], grid: tuple[int, ...], at: tuple[int, int]) -> None:
    high, wide = image[0] / grid[0], image[1] / grid[1]
    corner = (at[1] * wide - 0.5, at[0] * high - 0.5)
    axis.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor="tab:cyan", linewidth=1.5))


UNIT_TITLES = {"px": "pixels", "patch": "patches", "unit": "share of the side"}
HEAD, MEAN = "tab:blue", "tab:orange"
PANELS_PER_ROW = 4
"""Panels side by side."""
Values = Callable[[RunSummary, BlockMeans], npt.NDArray[np.float64]]
Reference = Callable[[BlockMeans], float] | None


def layers_figure(summaries: Sequence[RunSummary]) -> Figure:
    """Three panels per run, below each other, on common scales; at most `PANELS_PER_ROW` runs side by side."""
    units = UNIT_TITLES[summaries[0].means.blocks[0].units]
    kinds: tuple[tuple[str, Values, Reference], ...] = (
        (f"attention distance\n({units})", _distance, lambda block: block.uniform),
        ("entropy (nats)", lambda summary, block: block.entropy, lambda block: block.max_entropy),
        ("KL between heads (nats)", lambda summary, block: block.head_kl, None),
    )
    across, num_rows = min(PANELS_PER_ROW, len(summaries)), -(-len(summaries) // PANELS_PER_ROW)
    size = (1.2 + 3.4 * across, 8.2 * num_rows)
    figure, axes = plt.subplots(3 * num_rows, across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (label, values, reference) in enumerate(kinds):
        top = 1.05 * max(_max_value(summary, values, reference) for summary in summaries)
        for number, summary in enumerate(summaries):
            axis = axes[3 * (number // PANELS_PER_ROW) + row, number % PANELS_PER_ROW]
            axis.set_axis_on()
            _scatter_heads(axis, summary, values, reference)
            axis.set_ylim(0, top)
            if number % PANELS_PER_ROW == 0:
                axis.set_ylabel(label, fontsize=10)
            else:
                axis.set_yticklabels([])
            if row == 0:
                axis.set_title(summary.title, fontsize=10, parse_math=False)
            if row == 2:
                axis.set_xlabel("layer", fontsize=9)
    axes[0, 0].legend(fontsize=8, loc="lower left", framealpha=0.8)
    return figure


def _max_value(summary: RunSummary, values: Values, reference: Reference) -> float:
    blocks = summary.means.blocks
    largest = max(float(np.nanmax(values(summary, block), initial=0.0)) for block in blocks)
    return largest if reference is None else max(largest, *(reference(block) for block in blocks))


def _distance(summary: RunSummary, block: BlockMeans) -> npt.NDArray[np.float64]:
    return block.distance_by(summary.cls)


def _scatter_heads(axis: Axes, summary: RunSummary, values: Values, reference: Reference) -> None:
    blocks = summary.means.blocks
    layers = np.arange(1, len(blocks) + 1)
    heads = [np.asarray(values(summary, block)) for block in blocks]
    places = np.concatenate([np.full(len(of_layer), at) for at, of_layer in zip(layers, heads, strict=True)])
    axis.scatter(
        places, np.concatenate(heads), s=14, alpha=0.55, color=HEAD, linewidths=0, zorder=3, label="a head"
    )
    axis.plot(
        layers,
        [of_layer.mean() for of_layer in heads],
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


def cka_figure(summaries: Sequence[RunSummary], first: int) -> Figure:
    """A map of all pairs of layers for each run, one scale; `first`: number of the first layer (0 = the embedding)."""
    across, rows = min(PANELS_PER_ROW, len(summaries)), -(-len(summaries) // PANELS_PER_ROW)
    size = (1.6 + 3.2 * across, 3.6 * rows)
    figure, axes = plt.subplots(rows, across, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(summaries) :]:
        axis.set_axis_off()
    for axis, summary in zip(axes.flat, summaries, strict=False):
        cka = summary.means.cka
        assert cka is not None
        edges = (first - 0.5, first + len(cka) - 0.5)
        image = axis.imshow(cka, vmin=0, vmax=1, cmap="viridis", origin="lower", extent=(*edges, *edges))
        axis.set_title(summary.title, fontsize=10, parse_math=False)
        axis.set_xlabel("layer", fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("layer", fontsize=9)
    figure.colorbar(image, ax=list(axes.flat), label="CKA", shrink=0.85)
    return figure
