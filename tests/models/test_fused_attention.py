"""Attention through jax.nn (cuDNN on a GPU): odd lengths, which cuDNN cannot train, are padded and give the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.attention import _fused_attention, attend


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (5, 5), (3, 5), (2, 7)])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_odd_lengths_are_padded_without_a_trace(
    queries: int, keys: int, with_mask: bool, with_bias: bool
) -> None:
    """Values and gradients of q, k, v and the bias, against our own attention; the same padding as cuDNN gets."""
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(2, 3, n, 8)), jnp.float32) for n in (queries, keys, keys))
    mask = jnp.asarray(draw.random((2, 1, queries, keys)) < 0.7).at[..., 0].set(True) if with_mask else None
    bias = (
        jnp.asarray(draw.normal(size=(1, 3, queries, keys)), jnp.float32)
        if with_bias
        else jnp.zeros((1, 1, 1, 1))
    )
    target = jnp.asarray(draw.normal(size=q.shape), jnp.float32)

    def value(function, q, k, v, bias):
        out = function(q, k, v, mask, bias if with_bias else None)
        return jnp.sum(out * target), out

    ours = lambda q, k, v, mask, bias: attend(q, k, v, mask=mask, bias=bias)  # noqa: E731
    fused = lambda q, k, v, mask, bias: _fused_attention(q, k, v, mask, bias, "xla")  # noqa: E731
    gradients = [
        jax.grad(lambda *args, f=function: value(f, *args), argnums=(0, 1, 2, 3), has_aux=True)(q, k, v, bias)
        for function in (ours, fused)
    ]
    (expected, expected_out), (found, out) = gradients
    np.testing.assert_allclose(out, expected_out, atol=1e-6)
    for one, other in zip(found, expected, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=1e-5)
