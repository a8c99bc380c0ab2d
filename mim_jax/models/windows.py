"""How a map of tokens is cut into windows, and attention inside them (docs/papers/dark_secrets.md 1.2).

Sizes, labels and offsets follow from shapes: numpy, at trace time. Version 2 has cosine attention with a log-spaced position
bias, version 1 scaled dot products with a table of biases.
"""

import dataclasses
import functools
import math
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float64, Int64, Shaped

from mim_jax.models.attention import OutputProjection, QKVProjection, query_key_products
from mim_jax.models.encoder import AttentionGeometry
from mim_jax.models.layers import Dense, uninitialised, wide_dtype
from mim_jax.models.positions import RelativePositionBias, relative_index

PADDING = -1
"""Label of the tokens that only fill up the last windows."""
AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)
CPB_HIDDEN = 512
MAX_LOGIT_SCALE = math.log(100.0)
SHIFT_MASK = -100.0
"""Added to the logits of a pair of tokens that lie in different parts of a shifted window: finite, as everywhere."""


@dataclasses.dataclass(frozen=True)
class WindowPlan:
    """How one block cuts its map; all sizes are (rows, columns) in tokens."""

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    @property
    def padded(self) -> tuple[int, int]:
        """The map after zeros at the bottom and at the right made it a multiple of the window."""
        return (
            -(-self.grid[0] // self.window[0]) * self.window[0],
            -(-self.grid[1] // self.window[1]) * self.window[1],
        )

    @property
    def count(self) -> int:
        """Windows of an image."""
        return self.padded[0] * self.padded[1] // self.tokens

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.window[0] * self.window[1]


def plan_windows(grid: tuple[int, int], window: int, shifted: bool) -> WindowPlan:
    """The windows of a block: along an axis no longer than the window, one window of the map's size and no shift.

    Each axis for itself, as timm has it: a map of 6x12 in windows of 12 is one window of 6x12. On square maps this is the
    official rule; on others the official code takes square windows of the shorter side.
    """
    sides = (min(grid[0], window), min(grid[1], window))
    shift = tuple(
        side // 2 if shifted and cells > side else 0 for cells, side in zip(grid, sides, strict=True)
    )
    return WindowPlan(grid, sides, (shift[0], shift[1]))


def window_partition(
    x: Shaped[AnyArray, "batch rows columns channels"], window: tuple[int, int]
) -> Shaped[AnyArray, "batch windows {window[0]*window[1]} channels"]:
    """A map whose sides are multiples of the window's, cut into windows; tokens and windows in raster order."""
    batch, rows, columns, channels = x.shape
    high, wide = window
    x = x.reshape(batch, rows // high, high, columns // wide, wide, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, -1, high * wide, channels)


def window_reverse(
    windows: Shaped[Array, "batch windows {window[0]*window[1]} channels"],
    window: tuple[int, int],
    grid: tuple[int, int],
) -> Shaped[Array, "batch {grid[0]} {grid[1]} channels"]:
    """The inverse of `window_partition`."""
    batch, _, _, channels = windows.shape
    high, wide = window
    x = windows.reshape(batch, grid[0] // high, grid[1] // wide, high, wide, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, *grid, channels)


def to_windows(
    x: Shaped[Array, "batch tokens dim"], plan: WindowPlan
) -> Shaped[Array, "batch {plan.count} {plan.tokens} dim"]:
    """The map's tokens to those of its windows.

    Padded first, rolled second (the dense-task code's order, and transformers'; timm rolls first).
    """
    x = x.reshape(len(x), *plan.grid, x.shape[-1])
    if plan.padded != plan.grid:
        bottom, right = plan.padded[0] - plan.grid[0], plan.padded[1] - plan.grid[1]
        x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
    if any(plan.shift):
        x = jnp.roll(x, (-plan.shift[0], -plan.shift[1]), axis=(1, 2))
    return window_partition(x, plan.window)


def from_windows(
    windows: Shaped[Array, "batch {plan.count} {plan.tokens} dim"], plan: WindowPlan
) -> Shaped[Array, "batch tokens dim"]:
    """The inverse of `to_windows`; what stands at padding is dropped."""
    x = window_reverse(windows, plan.window, plan.padded)
    if any(plan.shift):
        x = jnp.roll(x, plan.shift, axis=(1, 2))
    x = x[:, : plan.grid[0], : plan.grid[1]]
    return x.reshape(len(x), -1, x.shape[-1])


@functools.lru_cache(maxsize=64)
def shift_regions(plan: WindowPlan) -> Int64[np.ndarray, "{plan.count} {plan.tokens}"] | None:
    """Labels of the parts of shifted windows; None without a shift.

    Along an axis of the rolled, padded map: [0, -window), [-window, -shift), [-shift, end). Tokens of different labels
    must not attend to each other. Padding has no label of its own here: in the network it is a key like any other
    (key 0, value the projection's bias), as in the official dense-task code.
    """
    if not any(plan.shift):
        return None
    rows, columns = (
        (np.arange(length) >= length - side).astype(np.int64) + (np.arange(length) >= length - shift)
        if shift
        else np.zeros(length, np.int64)
        for length, side, shift in zip(plan.padded, plan.window, plan.shift, strict=True)
    )
    labels = 3 * rows[:, None] + columns[None, :]
    return window_partition(labels[None, ..., None], plan.window)[0, ..., 0]


@functools.lru_cache(maxsize=64)
def token_places(plan: WindowPlan) -> Int64[np.ndarray, "{plan.count} {plan.tokens}"]:
    """The raster index in the map of every token of every window; `PADDING` where there is none."""
    places = np.full(plan.padded, PADDING)
    places[: plan.grid[0], : plan.grid[1]] = np.arange(plan.grid[0] * plan.grid[1]).reshape(plan.grid)
    places = np.roll(places, (-plan.shift[0], -plan.shift[1]), axis=(0, 1))
    return window_partition(places[None, ..., None], plan.window)[0, ..., 0]


def window_coordinates(window: tuple[int, int]) -> Int64[np.ndarray, "{window[0]*window[1]} 2"]:
    """(row, column) of the tokens of a window."""
    return np.moveaxis(np.indices(window), 0, -1).reshape(-1, 2)


def log_offsets(window: tuple[int, int], reference: tuple[int, int]) -> Float64[np.ndarray, "offsets 2"]:
    """The inputs of the log-spaced position bias: g of every offset, (2 rows - 1)(2 columns - 1) of them.

    u = 8 delta / (reference - 1); g = sign(u) log2(|u| + 1) / log2(8), delta = -(side - 1) .. side - 1, raster order: the
    rows that `positions.relative_index` names. reference: the window of pre-training; one of 1 is divided by 1.
    """
    axes = []
    for side, known in zip(window, reference, strict=True):
        u = 8.0 * np.arange(-(side - 1), side) / max(known - 1, 1)
        axes.append(np.sign(u) * np.log2(np.abs(u) + 1.0) / np.log2(8.0))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def attention_geometry(plan: WindowPlan, pixels: float) -> AttentionGeometry:
    """Where a block's tokens lie; `pixels`: side of a token.

    Regions are `shift_regions`' labels (0 without a shift), and `PADDING` = -1 for padding. The network does attend to
    padding; an analysis must not, as padding lies nowhere: it drops -1 as a key and does not count it as a query.
    """
    regions, padding = shift_regions(plan), token_places(plan) == PADDING
    if padding.any():
        regions = np.where(padding, PADDING, 0 if regions is None else regions)
    return AttentionGeometry(
        coordinates=window_coordinates(plan.window), pixels=pixels, windows=plan.count, regions=regions
    )


def _unit(x: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-12) over the last axis; a row of zeros (the key of padding) stays, with a finite gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.maximum(jnp.sqrt(jnp.where(square > 0, square, 1.0)), 1e-12)


class WindowAttention(nn.Module):
    """Attention inside the windows of one block.

    Where the collection "attention" is mutable it holds `log_weights` after the call: log softmax of the logits, float32 (at least)
    [B, windows, heads, tokens, tokens], query before key.
    """

    width: int
    heads: int
    plan: WindowPlan
    reference_window: tuple[int, int]  # (rows, columns) that the log-spaced position bias is scaled to
    version: int = 2
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        bias = "qv" if self.version == 2 else "qkv"
        self.qkv = QKVProjection(self.heads, self.width // self.heads, bias, self.dtype)
        self.proj = OutputProjection(self.width, self.dtype)
        if self.version == 1:
            self.relative_position_bias = RelativePositionBias(self.plan.window, self.heads, cls=False)
            return
        self.logit_scale = self.param("logit_scale", uninitialised, (self.heads, 1, 1))
        # The bias stays in float32: its logits go up to 16.
        self.cpb_fc1, self.cpb_fc2 = Dense(CPB_HIDDEN), Dense(self.heads, use_bias=False)

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """Of all tokens of the map."""
        windows = to_windows(x, self.plan)
        batch, count, tokens, _ = windows.shape
        q, k, v = self.qkv(windows.reshape(batch * count, tokens, -1), tokens, tokens)
        logits = self._logits(q, k).reshape(batch, count, self.heads, tokens, tokens)
        if self.is_mutable_collection("attention") and not self.is_initializing():
            self.sow("attention", "log_weights", jax.nn.log_softmax(logits, axis=-1))
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype).reshape(-1, self.heads, tokens, tokens)
        out = self.proj(jnp.einsum("bhqk,bhkd->bhqd", weights, v))
        return from_windows(out.reshape(batch, count, tokens, -1), self.plan)

    def _logits(self, q: jax.Array, k: jax.Array) -> jax.Array:
        """Of [B * windows, heads, tokens, d], in float32 at least; position bias and shift mask added."""
        wide = wide_dtype(q)
        if self.version == 1:
            q, bias = q * q.shape[-1] ** -0.5, self.relative_position_bias()
        else:
            scale = jnp.exp(jnp.minimum(self.logit_scale, MAX_LOGIT_SCALE))
            dtype = q.dtype
            q, k = (_unit(q.astype(wide)) * scale).astype(dtype), _unit(k.astype(wide)).astype(dtype)
            bias = self.position_bias(wide)
        logits = query_key_products(q, k) + bias
        regions = shift_regions(self.plan)
        if regions is None:
            return logits
        # From labels, not as one array: 30 x 30 windows would be constants of 100 MB and more in the program.
        labels = jnp.asarray(regions)
        mask = jnp.where(labels[:, :, None] == labels[:, None, :], 0.0, SHIFT_MASK).astype(wide)
        return (logits.reshape(-1, *mask.shape[:1], *logits.shape[1:]) + mask[:, None]).reshape(logits.shape)

    def position_bias(self, wide: DTypeLike) -> Float[Array, "{self.heads} tokens tokens"]:
        """16 sigmoid(MLP(log-spaced offset))."""
        offsets = jnp.asarray(log_offsets(self.plan.window, self.reference_window), wide)
        table = 16.0 * jax.nn.sigmoid(self.cpb_fc2(jax.nn.relu(self.cpb_fc1(offsets))))
        return table[relative_index(self.plan.window, False)].transpose(2, 0, 1)
