"""Multi-head attention over rows of which the first ones are keys and the last ones queries."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mim_jax.models.bands import Band
from mim_jax.models.layers import Dense, dense, promoted

Mask = jax.Array | tuple[Band, ...] | None
"""Who may attend to whom: a boolean array, bands of rows (a constant mask), or everybody to everybody."""


class Projections(nn.Module):
    """The fused q, k, v projection: kernel [D, 3 D] with column blocks q, k, v; heads are contiguous chunks.

    `bias` is "qkv", "qv" (no k bias: it would be inert under the softmax; BEiT, SimMIM, Beyond Masking) or "none".
    """

    width: int
    bias: str = "qkv"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, num_keys: int, num_queries: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rows [B, R, D] to q [B, num_queries, D] of the last rows, k and v [B, num_keys, D] of the first."""
        width = self.width
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 3 * width))
        x, kernel, bias = promoted(self.dtype, x, kernel, self._bias())
        rows = x.shape[1]
        if num_keys == rows == num_queries:
            q, k, v = jnp.split(dense(x, kernel, bias), 3, axis=-1)
            return q, k, v
        q = dense(x[:, rows - num_queries :], kernel[:, :width], None if bias is None else bias[:width])
        rest = None if bias is None else bias[width:]
        k, v = jnp.split(dense(x[:, :num_keys], kernel[:, width:], rest), 2, axis=-1)
        return q, k, v

    def _bias(self) -> jax.Array | None:
        """[3 D], zero for k under "qv"."""
        zeros, width = nn.initializers.zeros, self.width
        if self.bias == "qkv":
            return self.param("bias", zeros, (3 * width,))
        if self.bias == "qv":
            q_bias, v_bias = self.param("q_bias", zeros, (width,)), self.param("v_bias", zeros, (width,))
            return jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
        if self.bias != "none":
            raise ValueError(f"the bias of the attention projections is qkv, qv or none, not {self.bias!r}")
        return None


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(q k^T / sqrt(d) + bias, where mask) v.

    Args:
        q: [B, H, Q, d]. k, v: [B, H, K, d].
        mask: bool, broadcastable to [B, H, Q, K]; True = may attend. Hidden keys get a weight of exactly 0.
        bias: float, broadcastable to [B, H, Q, K].
        implementation: "xla", "cudnn" (GPU, 16-bit), or "auto" (xla; see docs/decisions.md).
    Returns:
        [B, H, Q, d].
    """
    if implementation == "cudnn":
        swap = lambda t: t.transpose(0, 2, 1, 3)  # noqa: E731
        return swap(
            jax.nn.dot_product_attention(
                swap(q), swap(k), swap(v), mask=mask, bias=bias, implementation="cudnn"
            )
        )
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=wide)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(wide).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v)


def attend_in_bands(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    given: tuple[Band, ...],
    *,
    bias: jax.Array | None,
    implementation: str,
) -> jax.Array:
    """`attend` under a constant mask that was cut into bands; the result is that of the whole mask."""
    parts = []
    for band in given:
        rows, keys = slice(*band.rows), slice(*band.keys)
        part = attend(
            q[:, :, rows],
            k[:, :, keys],
            v[:, :, keys],
            mask=None if band.mask is None else jnp.asarray(band.mask),
            bias=None if bias is None else bias[..., rows, keys],
            implementation=implementation,
        )
        parts.append(part)
    return jnp.concatenate(parts, axis=2)


class Attention(nn.Module):
    """Self-attention of the last `num_queries` rows to the first `num_keys` rows."""

    width: int
    heads: int
    bias: str = "qkv"
    implementation: str = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        num_keys: int | None = None,
        num_queries: int | None = None,
        mask: Mask = None,
        position_bias: jax.Array | None = None,
    ) -> jax.Array:
        """[B, R, D] to [B, num_queries, D]; both counts default to R. Bias as in `attend`.

        mask: as in `attend`, or bands of the query rows (a constant mask).
        """
        batch, rows, _ = x.shape
        keys, queries = num_keys or rows, num_queries or rows
        projected = Projections(self.width, self.bias, self.dtype, name="qkv")(x, keys, queries)
        q, k, v = (
            t.reshape(batch, -1, self.heads, self.width // self.heads).transpose(0, 2, 1, 3)
            for t in projected
        )
        if isinstance(mask, tuple):
            out = attend_in_bands(q, k, v, mask, bias=position_bias, implementation=self.implementation)
        else:
            out = attend(q, k, v, mask=mask, bias=position_bias, implementation=self.implementation)
        out = out.transpose(0, 2, 1, 3).reshape(batch, queries, self.width)
        return Dense(x.shape[-1], dtype=self.dtype, name="proj")(out)
