"""The ViT's options: positions, biases, remat, precision, odd shapes, drop path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import drawn

from mim_jax.models.attention import attend
from mim_jax.models.layers import LayerNorm, drop_path, gelu
from mim_jax.models.positions import relative_index, sincos_1d, sincos_2d
from mim_jax.models.vit import ViT, ViTConfig

SMALL = ViTConfig(image_size=(16, 24), patch=4, width=32, depth=2, heads=2)


def patches(count: int = 3, config: ViTConfig = SMALL) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (count, config.num_patches, 3 * config.patch**2))


def run(config: ViTConfig, **kwargs) -> tuple[dict, jax.Array]:
    x = patches(config=config)
    variables = {"params": drawn(ViT(config), x)}
    return variables, ViT(config).apply(variables, x, **kwargs)


def test_sincos_2d_is_maes_table() -> None:
    table = np.concatenate([np.zeros((1, 768)), sincos_2d((14, 14), 768)])
    assert np.linalg.norm(table) == pytest.approx(274.342851, abs=1e-6)
    assert table.sum() == pytest.approx(69594.4939, abs=1e-3)
    token = {"1": table[1], "2": table[2], "15": table[15], "196": table[196]}
    np.testing.assert_allclose(token["1"][[0, 192, 384, 576]], [0, 1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(
        token["2"][[0, 1, 192, 384, 576]], [0.841471, 0.815251, 0.540302, 0, 1], atol=1e-6
    )
    np.testing.assert_allclose(token["15"][[0, 384, 385, 576]], [0, 0.841471, 0.815251, 0.540302], atol=1e-6)
    np.testing.assert_allclose(token["196"][[0, 384, 1]], [0.420167, 0.420167, -0.174370], atol=1e-6)
    decoder = sincos_2d((14, 14), 512)
    assert np.linalg.norm(decoder) == pytest.approx(224, abs=1e-9)
    assert decoder[1, 1] == pytest.approx(0.801962, abs=1e-6)


def test_sincos_2d_equals_the_official_tables() -> None:
    from tests.conftest import official

    weights = official("mae_public")
    for name, width in (("w/pos_embed", 32), ("w/decoder_pos_embed", 24)):
        np.testing.assert_allclose(sincos_2d((4, 4), width), weights[name][0, 1:], atol=6e-8)


def test_sincos_1d_is_beyond_maskings_table() -> None:
    table = sincos_1d(196, 768)
    np.testing.assert_allclose(table[1, :4], [0.84147096, 0.5403023, 0.8284308, 0.5600915], atol=1e-7)
    np.testing.assert_allclose(table[195, :4], [0.21945466, 0.9756227, 0.95167124, -0.30711854], atol=1e-7)
    np.testing.assert_allclose(sincos_1d(196, 384)[1, 2:4], [0.81525064, 0.57910824], atol=1e-7)
    assert table.sum() == pytest.approx(48290.938, abs=0.01)
    assert sincos_1d(196, 384).sum() == pytest.approx(24105.219, abs=0.01)


def test_relative_index_is_query_minus_key() -> None:
    index = relative_index((2, 3), cls=True)
    entries = 3 * 5
    assert (
        index[0, 0] == entries + 2 and (index[0, 1:] == entries).all() and (index[1:, 0] == entries + 1).all()
    )
    for q in range(6):
        for k in range(6):
            dr, dc = q // 3 - k // 3, q % 3 - k % 3
            assert index[1 + q, 1 + k] == (dr + 1) * 5 + (dc + 2)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["learned", "sincos_2d", "sincos_1d", "none"])
@pytest.mark.parametrize("cls", [True, False])
def test_positions_and_cls_on_a_non_square_grid(positions: str, cls: bool) -> None:
    config = dataclasses.replace(SMALL, positions=positions, cls=cls)
    variables, out = run(config)
    assert out.shape == (3, 24 + cls, 32) and np.isfinite(out).all()
    table = ViT(config).apply(variables, method="positions")
    assert table.shape == (1, 24 + cls, 32)
    if cls and positions != "learned":
        assert (np.asarray(table[0, 0]) == 0).all()
    shuffled = ViT(config).apply(variables, patches()[:, ::-1])
    moves = np.abs(np.asarray(out[:, cls:][:, ::-1] - shuffled[:, cls:])).max()
    assert moves < 1e-5 if positions == "none" else moves > 1e-3


@pytest.mark.parametrize("relative_bias", ["shared", "per_block"])
def test_relative_position_bias_adds_to_the_logits(relative_bias: str) -> None:
    config = dataclasses.replace(
        SMALL, relative_bias=relative_bias, positions="none", qkv_bias="qv", layer_scale=0.5
    )
    variables, out = run(config)
    tables = [
        p
        for path, p in jax.tree_util.tree_leaves_with_path(variables)
        if "table" in jax.tree_util.keystr(path)
    ]
    assert len(tables) == (1 if relative_bias == "shared" else 2) and tables[0].shape == (7 * 11 + 3, 2)
    without = jax.tree_util.tree_map_with_path(
        lambda path, p: 0 * p if "table" in jax.tree_util.keystr(path) else p, variables
    )
    assert np.abs(np.asarray(out - ViT(config).apply(without, patches()))).max() > 1e-3


@pytest.mark.slow
def test_attention_bias_is_the_softmax_of_the_sum() -> None:
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 2, 5, 4)) for i in range(3))
    bias = jax.random.normal(jax.random.key(4), (2, 5, 5))
    mask = jnp.arange(5)[None, :] <= jnp.arange(5)[:, None]
    logits = np.einsum("bhqd,bhkd->bhqk", q, k) / 2 + np.asarray(bias)
    logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(attend(q, k, v, mask=mask, bias=bias), weights @ np.asarray(v), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["block", "dots"])
def test_remat_changes_nothing_but_memory(remat: str) -> None:
    variables, _ = run(SMALL)

    def loss(variables, config):
        return jnp.sum(jnp.square(ViT(config).apply(variables, patches())))

    plain = jax.grad(loss)(variables, SMALL)
    recomputed = jax.grad(loss)(variables, dataclasses.replace(SMALL, remat=remat))
    assert jax.tree.structure(plain) == jax.tree.structure(recomputed)  # the tree of names is the same
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, recomputed)


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_with_float32_parameters() -> None:
    config = dataclasses.replace(SMALL, dtype=jnp.bfloat16)
    variables, out = run(config)
    assert out.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = ViT(SMALL).apply(variables, patches())
    assert np.abs(np.asarray(out, np.float32) - np.asarray(exact)).max() < 0.1


def test_layer_norm_keeps_float64_and_lifts_bfloat16() -> None:
    x = 100 + jax.random.normal(jax.random.key(0), (4, 64))
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(x), jnp.float64)
        out = LayerNorm().apply({"params": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}, wide)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(
            out, (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-6), atol=1e-12
        )


def test_gelu_is_exact() -> None:
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)


def test_drop_path_drops_whole_examples_and_scales_the_rest() -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    out = np.asarray(drop_path(jnp.ones((4000, 2, 3)), 0.25, keys, salt=3))
    kept = out[:, 0, 0] > 0
    np.testing.assert_allclose(out[kept], 1 / 0.75, rtol=1e-6)
    assert (out[~kept] == 0).all() and abs(kept.mean() - 0.75) < 0.03
    other = np.asarray(drop_path(jnp.ones((4000, 2, 3)), 0.25, keys, salt=4))[:, 0, 0] > 0
    assert abs((kept & other).mean() - 0.75**2) < 0.03  # branches draw independently
    np.testing.assert_array_equal(drop_path(jnp.ones((2, 2, 2)), 0.9, None, 0), np.ones((2, 2, 2)))


def test_drop_path_rates_are_linear() -> None:
    rates = ViTConfig(depth=12, drop_path=0.1).drop_path_rates
    assert rates[0] == 0 and rates[1] == pytest.approx(0.00909, abs=1e-5) and rates[-1] == pytest.approx(0.1)
