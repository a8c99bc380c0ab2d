"""Attention inside the windows of a Swin's block: cosine attention with a log-spaced position bias, or version 1's.

Source: docs/papers/dark_secrets.md 1.2.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mim_jax.models.attention import OutputProjection, QKVProjection, query_key_products
from mim_jax.models.layers import Dense, uninitialised, wide_dtype
from mim_jax.models.positions import RelativePositionBias, relative_index
from mim_jax.models.windows import SHIFT_MASK, WindowPlan, cut, join, log_offsets, shift_regions

CPB_HIDDEN = 512
MAX_LOGIT_SCALE = math.log(100.0)


def _unit(x: jax.Array) -> jax.Array:
    """x / max(|x|, 1e-12) over the last axis; a row of zeros (the key of padding) stays, with a finite gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.maximum(jnp.sqrt(jnp.where(square > 0, square, 1.0)), 1e-12)


class WindowAttention(nn.Module):
    """Attention inside the windows of one block.

    Where the collection "attention" is mutable it is given `log_weights`: log softmax of the logits, float32 (at least)
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

    def __call__(self, x: jax.Array) -> jax.Array:
        """The map's tokens [B, rows * columns, C] to the same shape."""
        windows = cut(x, self.plan)
        batch, count, tokens, _ = windows.shape
        q, k, v = self.qkv(windows.reshape(batch * count, tokens, -1), tokens, tokens)
        logits = self._logits(q, k).reshape(batch, count, self.heads, tokens, tokens)
        if self.is_mutable_collection("attention") and not self.is_initializing():
            self.sow("attention", "log_weights", jax.nn.log_softmax(logits, axis=-1))
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype).reshape(-1, self.heads, tokens, tokens)
        out = self.proj(jnp.einsum("bhqk,bhkd->bhqd", weights, v))
        return join(out.reshape(batch, count, tokens, -1), self.plan)

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

    def position_bias(self, wide: DTypeLike) -> jax.Array:
        """16 sigmoid(MLP(log-spaced offset)), [heads, tokens, tokens]."""
        offsets = jnp.asarray(log_offsets(self.plan.window, self.reference_window), wide)
        table = 16.0 * jax.nn.sigmoid(self.cpb_fc2(jax.nn.relu(self.cpb_fc1(offsets))))
        return table[relative_index(self.plan.window, False)].transpose(2, 0, 1)
