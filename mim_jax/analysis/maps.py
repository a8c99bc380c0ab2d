"""Pictures of attention over an image: what one patch looks at, head by head, and the rollout through all layers."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpy.typing as npt

from mim_jax.analysis.capture import encoder_attention
from mim_jax.methods.method import Method
from mim_jax.models.encoder import AttentionGeometry
from mim_jax.models.vit import Params

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Array = npt.NDArray[np.float32]

MOST_LAYERS, MOST_HEADS = 4, 6
"""Drawn of a run."""


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """Of some images, uint8 [B, H, W, 3].

    layers: layer (from 1) -> what the patch in the middle looks at in every head, [B, H, rows, columns]; only layers whose
    attention is one window. query: (row, column) of that patch, of each layer. rollout: [B, rows, columns], None where
    windows or merging forbid it.
    """

    images: npt.NDArray[np.uint8]
    layers: dict[int, Array]
    query: dict[int, tuple[int, int]]
    rollout: Array | None
    names: tuple[str, ...] = ()  # the class of each image, '' = none


def attention_maps(
    method: Method, params: Params, images: npt.NDArray[np.uint8], names: tuple[str, ...] = ()
) -> AttentionMaps:
    """One compiled forward; of every layer only the rows that are drawn come back. names: the class of each image."""
    geometry = method.net.geometry
    drawn = chosen_layers([where.windows == 1 for where in geometry])
    middle = {layer: grid_of(geometry[layer]) for layer in drawn}
    query = {layer: (rows // 2, columns // 2) for layer, (rows, columns) in middle.items()}
    through = all(w.windows == 1 and len(w.coordinates) == len(geometry[0].coordinates) for w in geometry)
    if not drawn:
        return AttentionMaps(images, {}, {}, None, names)

    @jax.jit
    def look(params: Params, images: jax.Array) -> tuple[dict[int, jax.Array], jax.Array | None]:
        _, logs = encoder_attention(method, params, images)
        rows = {}
        for layer in drawn:
            prefix, (row, column) = geometry[layer].prefix, query[layer]
            at = prefix + row * middle[layer][1] + column
            rows[layer] = jnp.exp(logs[layer][:, 0, :, at, prefix:])
        return rows, rollout([jnp.exp(log[:, 0]) for log in logs], geometry[0].prefix) if through else None

    rows, through_all = look(params, jnp.asarray(images))
    layers = {n + 1: np.asarray(x).reshape(*x.shape[:2], *middle[n]) for n, x in rows.items()}
    grid = grid_of(geometry[0])
    rolled = None if through_all is None else np.asarray(through_all).reshape(-1, *grid)
    return AttentionMaps(images, layers, {n + 1: at for n, at in query.items()}, rolled, names)


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


def chosen_layers(usable: Sequence[bool]) -> list[int]:
    """At most `MOST_LAYERS` of the usable layers, evenly spread, the first and the last among them."""
    known = [layer for layer, good in enumerate(usable) if good]
    places = np.linspace(0, len(known) - 1, min(MOST_LAYERS, len(known)))
    return [known[round(float(place))] for place in places]


def grid_of(geometry: AttentionGeometry) -> tuple[int, int]:
    """Rows and columns of a window."""
    rows, columns = geometry.coordinates.max(axis=0) + 1
    return int(rows), int(columns)


def heads_figure(maps: AttentionMaps, name: str) -> Figure:
    """A row a layer, a column a head: where the marked patch of the first image looks."""
    most = max(min(x.shape[1], MOST_HEADS) for x in maps.layers.values())
    shape = (len(maps.layers), 1 + most)
    figure, axes = plt.subplots(*shape, figsize=(1.75 * shape[1], 1.95 * shape[0]), squeeze=False)
    for row, (layer, weights) in zip(axes, maps.layers.items(), strict=True):
        grid, at = weights.shape[2:], maps.query[layer]
        row[0].imshow(maps.images[0])
        _mark(row[0], maps.images[0].shape, grid, at)
        row[0].set_title(f"layer {layer}", fontsize=9)
        for head, axis in enumerate(row[1:]):
            axis.set_axis_off()
            if head < min(weights.shape[1], MOST_HEADS):
                _over(axis, maps.images[0], weights[0, head])
                _mark(axis, maps.images[0].shape, grid, at)
                axis.set_title(f"head {head + 1}, up to {weights[0, head].max():.2f}", fontsize=8)
        row[0].set_axis_off()
    figure.suptitle(name, fontsize=10, parse_math=False)
    figure.tight_layout()
    return figure


def rollout_figure(maps: Sequence[tuple[str, AttentionMaps]]) -> Figure:
    """A row an image, a column a run: the rollout over the image. Runs that have none are left out.

    Runs on images of their own have a column for these beside their rollout.
    """
    shown = [(name, own) for name, own in maps if own.rollout is not None]
    same = all(np.array_equal(own.images, shown[0][1].images) for _, own in shown)
    count = min(len(own.images) for _, own in shown)
    columns = 1 + len(shown) if same else 2 * len(shown)
    figure, axes = plt.subplots(count, columns, figsize=(1.8 * columns, 1.9 * count), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (name, own) in enumerate(shown):
        column = number + 1 if same else 2 * number + 1
        rolled = own.rollout
        assert rolled is not None
        for row in range(count):
            if not same or number == 0:
                axes[row, column - 1].imshow(own.images[row])
                if own.names:
                    axes[row, column - 1].set_title(own.names[row], fontsize=8, parse_math=False)
            _over(axes[row, column], own.images[row], rolled[row])
        axes[0, column].set_title(name, fontsize=9, parse_math=False)
    figure.tight_layout()
    return figure


def _over(axis: Axes, image: npt.NDArray[np.uint8], weights: Array) -> None:
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


def _mark(axis: Axes, image: tuple[int, ...], grid: tuple[int, ...], at: tuple[int, int]) -> None:
    high, wide = image[0] / grid[0], image[1] / grid[1]
    corner = (at[1] * wide - 0.5, at[0] * high - 0.5)
    axis.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor="tab:cyan", linewidth=1.5))
