"""Multi-head attention over tokens of which the first ones are keys and the last ones queries."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mim_jax.models.attention_masks import MaskBlock, join_mask_blocks
from mim_jax.models.layers import dense, uninitialised, wide_dtype

Mask = Bool[Array, "... _ _"] | tuple[MaskBlock, ...] | None
"""Who may attend to whom: a boolean array, blocks of queries (a constant mask), or everybody to everybody."""


class QKVProjection(nn.Module):
    """The projections to q, k and v: kernel [D, 3, heads, head_dim], bias [3, heads, head_dim].

    `bias` is "qkv", "qv" (two parameters [heads, head_dim]; a k bias would be inert under the softmax: BEiT, SimMIM, Beyond
    Masking) or "none".
    """

    heads: int
    head_dim: int
    bias: str = "qkv"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], num_keys: int, num_queries: int
    ) -> tuple[
        Float[Array, "batch {self.heads} {num_queries} {self.head_dim}"],
        Float[Array, "batch {self.heads} {num_keys} {self.head_dim}"],
        Float[Array, "batch {self.heads} {num_keys} {self.head_dim}"],
    ]:
        """q of the last tokens, k and v of the first."""
        shape = (x.shape[-1], 3, self.heads, self.head_dim)
        kernel = self.param("kernel", uninitialised, shape)
        bias, tokens = self._bias(), x.shape[1]
        if num_keys == tokens == num_queries:
            qkv = dense(x, kernel, bias, self.dtype)
            q, k, v = (part[:, :, 0].transpose(0, 2, 1, 3) for part in jnp.split(qkv, 3, axis=2))
            return q, k, v
        parts = [(kernel[:, part], None if bias is None else bias[part]) for part in range(3)]
        q = self._project(x[:, tokens - num_queries :], *parts[0])
        k, v = (self._project(x[:, :num_keys], *part) for part in parts[1:])
        return q, k, v

    def _project(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        """[B, N, D] to [B, heads, N, head_dim] by one of the three; by a matrix, which takes a TPU 7 % fewer estimated cycles."""
        matrix = kernel.reshape(x.shape[-1], -1)
        out = dense(x, matrix, None if bias is None else bias.ravel(), self.dtype)
        return out.reshape(*x.shape[:2], self.heads, self.head_dim).transpose(0, 2, 1, 3)

    def _bias(self) -> jax.Array | None:
        """[3, heads, head_dim], zero for k under "qv"."""
        shape = (self.heads, self.head_dim)
        if self.bias == "qkv":
            return self.param("bias", uninitialised, (3, *shape))
        if self.bias == "qv":
            q_bias = self.param("q_bias", uninitialised, shape)
            v_bias = self.param("v_bias", uninitialised, shape)
            return jnp.stack([q_bias, jnp.zeros_like(q_bias), v_bias])
        if self.bias != "none":
            raise ValueError(f"the bias of the attention projections is qkv, qv or none, not {self.bias!r}")
        return None


class OutputProjection(nn.Module):
    """The heads' outputs, added up: kernel [heads, head_dim, features], bias [features]."""

    features: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch heads tokens head_dim"]
    ) -> Float[Array, "batch tokens {self.features}"]:
        x = x.transpose(0, 2, 1, 3)
        kernel = self.param("kernel", uninitialised, (*x.shape[2:], self.features))
        bias = self.param("bias", uninitialised, (self.features,))
        return dense(x, kernel, bias, self.dtype, axes=2)


def attend(
    q: Float[Array, "batch heads queries head_dim"],
    k: Float[Array, "batch heads keys head_dim"],
    v: Float[Array, "batch heads keys head_dim"],
    *,
    mask: Bool[Array, "... #queries #keys"] | None = None,
    bias: Float[Array, "... #queries #keys"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "batch heads queries head_dim"]:
    """softmax(q k^T / sqrt(d) + bias, where mask) v.

    Args:
        mask: broadcastable to [batch, heads, queries, keys]; True = may attend. Hidden keys get a weight of exactly 0.
        bias: broadcastable likewise.
        implementation: "xla", "cudnn" (GPU, 16-bit), or "auto" (xla; see docs/decisions.md).
    """
    if implementation == "cudnn":
        return _fused_attention(q, k, v, mask, bias, "cudnn")
    weights = attention_weights(q, k, bias, mask).astype(v.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v)


def _fused_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    implementation: Literal["cudnn", "xla"],
) -> jax.Array:
    """`attend` by jax.nn. cuDNN trains even lengths only: odd ones get one more query, and a key that nobody sees."""
    batch, _, queries, _ = q.shape
    keys = k.shape[2]
    lengths: dict[str, Any] = {}
    if queries % 2 or keys % 2:
        q, k, v = (jnp.pad(t, ((0, 0), (0, 0), (0, t.shape[2] % 2), (0, 0))) for t in (q, k, v))
        lengths = dict(
            query_seq_lengths=jnp.full(batch, queries), key_value_seq_lengths=jnp.full(batch, keys)
        )
        mask, bias = (
            None
            if t is None
            else jnp.pad(t, [(0, 0)] * (t.ndim - 2) + [(0, size % 2 * (size > 1)) for size in t.shape[-2:]])
            for t in (mask, bias)
        )
    q, k, v = (t.transpose(0, 2, 1, 3) for t in (q, k, v))
    attended = jax.nn.dot_product_attention(
        q, k, v, mask=mask, bias=bias, implementation=implementation, **lengths
    )
    return attended.transpose(0, 2, 1, 3)[:, :, :queries]


def attention_weights(
    q: Float[Array, "batch heads queries head_dim"],
    k: Float[Array, "batch heads keys head_dim"],
    bias: Float[Array, "... #queries #keys"] | None = None,
    mask: Bool[Array, "... #queries #keys"] | None = None,
) -> Float[Array, "batch heads queries keys"]:
    """softmax(q k^T / sqrt(d) + bias, where mask), in float32 at least; arguments as in `attend`."""
    return jax.nn.softmax(_logits(q, k, bias, mask), axis=-1)


@jax.custom_vjp
def query_key_products(
    q: Float[Array, "batch heads queries head_dim"], k: Float[Array, "batch heads keys head_dim"]
) -> Float[Array, "batch heads queries keys"]:
    """q k^T, in float32 at least.

    The cotangent is rounded to the dtype of q and k before the two products of the backward pass, which would otherwise run
    in float32: on an accelerator at a fraction of the speed.
    """
    return jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=wide_dtype(q))


def _products_forward(q: jax.Array, k: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return query_key_products(q, k), (q, k)


def _products_backward(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    q, k = residuals
    cotangent = cotangent.astype(q.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", cotangent, k), jnp.einsum("bhqk,bhqd->bhkd", cotangent, q)


query_key_products.defvjp(_products_forward, _products_backward)


def _logits(q: jax.Array, k: jax.Array, bias: jax.Array | None, mask: jax.Array | None) -> jax.Array:
    """q k^T / sqrt(d) + bias, where mask; the lowest finite number elsewhere."""
    logits = query_key_products(q * q.shape[-1] ** -0.5, k)
    if bias is not None:
        logits = logits + bias
    return logits if mask is None else jnp.where(mask, logits, jnp.finfo(logits.dtype).min)


def attend_by_blocks(
    q: Float[Array, "batch heads queries head_dim"],
    k: Float[Array, "batch heads keys head_dim"],
    v: Float[Array, "batch heads keys head_dim"],
    blocks: tuple[MaskBlock, ...],
    *,
    bias: Float[Array, "... queries keys"] | None,
    implementation: str,
) -> Float[Array, "batch heads queries head_dim"]:
    """`attend` under a constant mask that was cut into blocks; the result is that of the whole mask."""
    outputs = []
    for block in blocks:
        queries, keys = slice(*block.queries), slice(*block.keys)
        output = attend(
            q[:, :, queries],
            k[:, :, keys],
            v[:, :, keys],
            mask=None if block.mask is None else jnp.asarray(block.mask),
            bias=None if bias is None else bias[..., queries, keys],
            implementation=implementation,
        )
        outputs.append(output)
    return jnp.concatenate(outputs, axis=2)


class Attention(nn.Module):
    """Self-attention of the last `num_queries` tokens to the first `num_keys`.

    Where the collection "attention" is mutable it holds `log_weights` after the call: log softmax of the logits (bias added; a masked
    pair has the lowest finite number), float32 at least, [B, 1, heads, queries, keys].
    """

    width: int
    heads: int
    bias: str = "qkv"
    implementation: str = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        self.qkv = QKVProjection(self.heads, self.width // self.heads, self.bias, self.dtype)
        self.proj = OutputProjection(self.width, self.dtype)

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        *,
        num_keys: int | None = None,
        num_queries: int | None = None,
        mask: Mask = None,
        position_bias: Float[Array, "... #queries #keys"] | None = None,
    ) -> Float[Array, "batch queries dim"]:
        """Both counts default to all tokens. Bias as in `attend`.

        mask: as in `attend`, or blocks of the queries (a constant mask).
        """
        q, k, v = self.qkv(x, num_keys or x.shape[1], num_queries or x.shape[1])
        if self.is_mutable_collection("attention") and not self.is_initializing():
            out = self._attend_and_sow(q, k, v, mask, position_bias)
        elif isinstance(mask, tuple):
            out = attend_by_blocks(q, k, v, mask, bias=position_bias, implementation=self.implementation)
        else:
            out = attend(q, k, v, mask=mask, bias=position_bias, implementation=self.implementation)
        return self.proj(out)

    def row(
        self,
        x: Float[Array, "batch tokens dim"],
        query: int | None,
        position_bias: Float[Array, "... heads tokens tokens"] | None = None,
    ) -> Float[Array, "batch heads tokens"]:
        """The softmax weights of one query to all tokens; the other queries' are never computed.

        query: a token; None = the mean of all tokens' queries (and of their biases).
        """
        q, k, _ = self.qkv(x, x.shape[1], x.shape[1])
        q = jnp.mean(q, axis=2, keepdims=True) if query is None else q[:, :, query : query + 1]
        if position_bias is not None:
            query_bias = position_bias.mean(axis=-2) if query is None else position_bias[..., query, :]
            position_bias = query_bias[..., None, :]
        return attention_weights(q, k, position_bias)[:, :, 0]

    def _attend_and_sow(
        self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, bias: jax.Array | None
    ) -> jax.Array:
        """`attend` that also sows its log weights: blocks as one mask, and no fused implementation."""
        if isinstance(mask, tuple):
            mask = join_mask_blocks(mask, k.shape[2])
        log_weights = jax.nn.log_softmax(_logits(q, k, bias, mask), axis=-1)
        self.sow("attention", "log_weights", log_weights[:, None])
        return jnp.einsum("bhqk,bhkd->bhqd", jnp.exp(log_weights).astype(v.dtype), v)
