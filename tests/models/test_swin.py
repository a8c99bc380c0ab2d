"""Swin's options and invariants (docs/papers/dark_secrets.md 1.2, 7): sizes, labels, biases, capture, remat, precision, leaks."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.masked_predictor import SwinPredictor
from mim_jax.models.swin import SWIN_VARIANTS, Swin, SwinConfig
from mim_jax.models.windows import WindowAttention, shift_regions, token_places

# A map of 6x10 in windows of 4: padded and shifted; merged into 3x5, of which the rows are one window.
SMALL = SwinConfig((12, 20), 2, 16, (2, 1), (2, 4), (4, 4))
ONE_STAGE = dataclasses.replace(SMALL, depths=(2,), heads=(2,), windows=(4,))
# Compiled without LLVM's optimisations: these programs run once.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def patches_for(config: SwinConfig, count: int = 2) -> jax.Array:
    shape = (count, config.num_patches, 3 * config.patch**2)
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def noisy(config: SwinConfig, module: type = Swin) -> Any:
    """Parameters away from their initial values, logit scales excepted."""
    shapes = jax.eval_shape(module(config).init, jax.random.key(0), patches_for(config))["params"]
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name, noise = jax.tree_util.keystr(path), rng.normal(size=leaf.shape)
        start = 1.0 if name.endswith("['scale']") else 0.0
        value = np.log(10.0) if "logit_scale" in name else start + noise / max(leaf.shape[0], 4) ** 0.5
        return jnp.asarray(np.broadcast_to(np.asarray(value, np.float32), leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("s", 48_959_418), ("b", 86_893_816), ("l", 195_202_932)])
def test_parameter_counts_are_the_specs(name: str, count: int) -> None:
    config = SwinConfig(**SWIN_VARIANTS[f"swinv2_{name}"])
    shapes = jax.eval_shape(
        Swin(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2304, 48), jnp.float32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_sizes_of_a_config() -> None:
    base = SwinConfig(**SWIN_VARIANTS["swinv2_b"], drop_path=0.1)
    assert (base.grid, base.num_patches, base.num_tokens, base.prefix) == ((48, 48), 2304, 2304, 0)
    assert (base.cells, base.stride, base.features, base.depth) == ((6, 6), 32, 1024, 24)
    assert base.maps == ((48, 48), (24, 24), (12, 12), (6, 6)) and base.widths == (128, 256, 512, 1024)
    assert base.drop_path_rates[0] == 0 and base.drop_path_rates[-1] == pytest.approx(0.1)
    assert base.drop_path_rates[1] == pytest.approx(0.1 / 23)
    # 12 x 12 windows: 16 and 4 of them in the first stages; the third stage's map is one window and never shifts.
    assert [g.windows for g in base.geometry] == [16, 16, 4, 4] + [1] * 20
    assert [g.regions is not None for g in base.geometry] == [False, True, False, True] + [False] * 20
    assert [g.pixels for g in base.geometry[::2]] == [4.0, 8.0] + [16.0] * 9 + [32.0]
    assert base.geometry[-1].coordinates.shape == (36, 2)
    # The dense tasks' rule, and windows of 14 whose last stage is one of 7.
    dense = dataclasses.replace(
        base, image_size=(480, 480), windows=(30, 30, 30, 15), use_shift=(True, True, False, False)
    )
    assert [plan.shift[0] for plan in dense.plans] == [0, 15, 0, 15] + [0] * 20
    tuned = dataclasses.replace(
        base, image_size=(224, 224), windows=(14, 14, 14, 14), pretrained_windows=(12, 12, 12, 6)
    )
    assert tuned.plans[-1].window == (7, 7) and not any(tuned.plans[-1].shift)
    nano = SwinConfig((32, 32), 2, windows=(4, 4), **SWIN_VARIANTS["swinv2_nano"])
    assert (nano.cells, nano.stride, nano.features) == ((8, 8), 4, 96)


def test_the_mean_distance_of_uniform_attention_is_the_specs() -> None:
    """docs/papers/dark_secrets.md 2.1: 24.938, 49.876, 99.753 and 98.570 px for the stages of 192 px in windows of 12, 12, 12, 6."""
    means = []
    for geometry in SwinConfig().geometry[::2]:
        place = geometry.coordinates * geometry.pixels
        means.append(np.linalg.norm(place[:, None] - place[None], axis=-1).mean())
    assert sorted(set(np.round(means, 3))) == [24.938, 49.876, 98.570, 99.753]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(version=3), "version of a Swin is 1 or 2, not 3"),
        (dict(heads=(3, 6)), "2 entries for 4 stages"),
        (dict(windows=(12,)), "1 entries for 4 stages"),
        (dict(use_shift=(True,) * 3), "3 entries for 4 stages"),
        (dict(heads=(3, 5, 12, 24)), "5 heads do not divide the width of 192 of stage 1"),
        (dict(windows=(12, 12, 12, 0)), "must be at least 1"),
    ],
)
def test_configs_that_do_not_fit_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinConfig(**options)


def captured(config: SwinConfig, params: Any) -> tuple[list[jax.Array], jax.Array]:
    """log_weights of every block, and the output."""
    apply = jit(functools.partial(Swin(config).apply, mutable=["attention"]))
    out, kept = apply({"params": params}, patches_for(config))
    blocks = kept["attention"]
    return [blocks[f"block_{index:02d}"]["attn"]["log_weights"][0] for index in range(config.depth)], out


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "block"])
def test_captured_attention(remat: str) -> None:
    config = dataclasses.replace(SMALL, remat=remat)
    params = noisy(config)
    weights, out = captured(config, params)
    for log_weights, plan, geometry in zip(weights, config.plans, config.geometry, strict=True):
        heads = 2 if plan.grid == (6, 10) else 4
        assert log_weights.dtype == jnp.float32
        assert log_weights.shape == (2, plan.count, heads, plan.tokens, plan.tokens)
        assert geometry.coordinates.shape[0] == plan.tokens and geometry.windows == plan.count
        np.testing.assert_allclose(np.exp(log_weights).sum(axis=-1), 1, atol=1e-5)
        regions = shift_regions(plan)
        if regions is not None:
            forbidden = regions[:, :, None] != regions[:, None, :]
            largest = np.exp(np.asarray(log_weights, np.float64)).max(axis=(0, 2))
            assert forbidden.any() and largest[forbidden].max() < 1e-27
    variables = jax.eval_shape(Swin(config).init, jax.random.key(0), patches_for(config))
    assert set(variables) == {"params"}  # nothing is kept when nobody asks
    if remat == "none":
        np.testing.assert_allclose(
            out, jit(Swin(config).apply)({"params": params}, patches_for(config)), atol=1e-5
        )


def test_labels_of_the_geometry_name_padding() -> None:
    for plan, geometry in zip(SMALL.plans, SMALL.geometry, strict=True):
        assert geometry.regions is not None  # 6x10 and 3x5 are no multiples of 4
        np.testing.assert_array_equal(geometry.regions < 0, token_places(plan) < 0)
    assert len(np.unique(SMALL.geometry[0].regions)) == 2  # unshifted: real or padding


@pytest.mark.slow
def test_the_length_of_queries_and_keys_does_not_matter() -> None:
    params = noisy(ONE_STAGE)
    longer = jax.tree.map(lambda leaf: leaf, params)
    for block in ("block_00", "block_01"):
        qkv = longer[block]["attn"]["qkv"]
        qkv["kernel"] = qkv["kernel"] * np.array([3.0, 0.2, 1.0])[:, None, None]
        qkv["q_bias"] = qkv["q_bias"] * 3.0
    for ours, theirs in zip(captured(ONE_STAGE, params)[0], captured(ONE_STAGE, longer)[0], strict=True):
        np.testing.assert_allclose(np.exp(ours), np.exp(theirs), atol=1e-5)


def test_position_bias_depends_on_offsets_and_keeps_them_across_windows() -> None:
    params = noisy(dataclasses.replace(SMALL, depths=(1,), heads=(2,), windows=(4,)))["block_00"]["attn"]

    def bias(side: int, pretrained: int | None) -> np.ndarray:
        config = SwinConfig(
            (32, 32),
            2,
            16,
            (1,),
            (2,),
            (side,),
            pretrained_windows=None if pretrained is None else (pretrained,),
        )
        module = WindowAttention(16, 2, config.plans[0], config.reference_windows[0])
        out = jit(lambda params: module.apply({"params": params}, jnp.float32, method="position_bias"))(
            params
        )
        out = np.asarray(out)
        assert (out > 0).all() and (out < 16).all()
        return out.reshape(2, *(side,) * 4)

    small, large = bias(4, None), bias(6, 4)
    np.testing.assert_array_equal(small[:, 1:, 1:, 1:, 1:], small[:, :-1, :-1, :-1, :-1])
    np.testing.assert_array_equal(small, bias(4, 4))
    np.testing.assert_allclose(large[:, :4, :4, :4, :4], small, atol=1e-5)
    assert np.abs(bias(6, None)[:, :4, :4, :4, :4] - small).max() > 1e-2
    assert np.isfinite(bias(1, None)).all()


def test_logits_stay_within_a_hundred_and_sixteen() -> None:
    config = dataclasses.replace(SMALL, depths=(1,), heads=(2,), windows=(4,))
    params = noisy(config)
    params["block_00"]["attn"]["logit_scale"] = jnp.full((2, 1, 1), 50.0)
    log_weights = np.asarray(captured(config, params)[0][0])
    assert 100 < (log_weights.max(axis=-1) - log_weights.min(axis=-1)).max() <= 216


def test_the_mask_of_a_shifted_window_is_finite() -> None:
    """With all logits alike, a forbidden pair is exactly 100 below an allowed one, and padding is no forbidden key."""
    params = noisy(ONE_STAGE)
    for block in ("block_00", "block_01"):
        params[block]["attn"]["logit_scale"] = jnp.full((2, 1, 1), -100.0)
        params[block]["attn"]["cpb_fc2"] = jax.tree.map(jnp.zeros_like, params[block]["attn"]["cpb_fc2"])
    plain, shifted = captured(ONE_STAGE, params)[0]
    np.testing.assert_allclose(plain, -np.log(16), atol=1e-5)
    regions = shift_regions(ONE_STAGE.plans[1])
    assert regions is not None
    same = regions[:, :, None] == regions[:, None, :]
    expected = np.where(same, 0.0, -100.0) - np.log(same.sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(shifted, np.broadcast_to(expected[:, None], shifted.shape), atol=1e-4)


@pytest.mark.slow
def test_blocks_whose_norms_are_zero_do_nothing() -> None:
    params = noisy(SMALL)
    for index in range(SMALL.depth):
        for norm in ("norm1", "norm2"):
            params[f"block_{index:02d}"][norm] = jax.tree.map(
                jnp.zeros_like, params[f"block_{index:02d}"][norm]
            )

    @jit
    def both(params: Any) -> Any:
        x = Swin(SMALL).apply({"params": params}, patches_for(SMALL), method="input_tokens")
        merged = Swin(SMALL).apply({"params": params}, x, method=lambda net, x: net.merge[0](x))
        layers = Swin(SMALL).apply({"params": params}, x, method="apply_blocks")
        return x, merged, layers

    x, merged, layers = both(params)
    for layer, expected in zip(layers, (x, x, merged), strict=True):
        np.testing.assert_array_equal(layer, expected)


@pytest.mark.slow
def test_gradients_are_finite_on_padding_and_the_same_with_remat() -> None:
    """The key of padding is exactly 0: its length must not be divided by in the backward pass."""
    found = {}
    for remat in ("none", "dots"):
        config = dataclasses.replace(ONE_STAGE, remat=remat)
        weights = jnp.arange(16.0)

        def objective(params: Any, config: SwinConfig = config, weights: jax.Array = weights) -> jax.Array:
            return jnp.mean(Swin(config).apply({"params": params}, patches_for(config)) ** 3 * weights)

        found[remat] = jit(jax.grad(objective))(noisy(config))
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found["none"]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found["dots"], found["none"]
    )
    with pytest.raises(ValueError, match=r"model.remat is none, block or dots"):
        jax.eval_shape(
            Swin(dataclasses.replace(SMALL, remat="all")).init, jax.random.key(0), patches_for(SMALL)
        )


@pytest.mark.slow
def test_bfloat16_and_drop_path() -> None:
    params, patches = noisy(ONE_STAGE), patches_for(ONE_STAGE)
    half = dataclasses.replace(ONE_STAGE, dtype=jnp.bfloat16)
    wide = jit(Swin(ONE_STAGE).apply)({"params": params}, patches)
    out = jit(Swin(half).apply)({"params": params}, patches)
    assert out.dtype == jnp.bfloat16 and np.abs(np.asarray(out, np.float32) - wide).mean() < 0.05

    apply = jit(Swin(dataclasses.replace(ONE_STAGE, drop_path=0.6)).apply)
    keys = jax.random.split(jax.random.key(3), 2)
    dropped = np.asarray(apply({"params": params}, patches, keys))
    assert np.abs(dropped - wide).max() > 0.1
    np.testing.assert_allclose(apply({"params": params}, patches[::-1], keys[::-1])[::-1], dropped, atol=1e-5)
    np.testing.assert_array_equal(apply({"params": params}, patches), wide)  # no keys: nothing is dropped


@pytest.mark.slow
def test_predictions_know_nothing_of_hidden_patches() -> None:
    config = SwinConfig((16, 16), 2, windows=(4, 4), **SWIN_VARIANTS["swinv2_mu"])
    params = noisy(config, SwinPredictor)
    mask = np.zeros((2, 8, 8), bool)
    mask[0, :4, 2:6] = mask[1, 6:] = True
    mask, targets = mask.reshape(2, 64), jnp.asarray([[1, 2, 5], [12, 15, 14]])

    @jit
    def predict(params: Any, patches: jax.Array) -> Any:
        net = functools.partial(SwinPredictor(config).apply, {"params": params})
        chosen, back = jax.vjp(lambda x: net(x, jnp.asarray(mask), targets, method="masked"), patches)
        return chosen, back(chosen)[0]

    chosen, gradient = (np.asarray(out) for out in predict(params, patches_for(config)))
    assert chosen.shape == (2, 3, 48) and set(params) == {"encoder", "mask_token", "head"}
    assert not gradient[mask].any() and np.abs(gradient[~mask]).max(axis=-1).all()


def test_predictors_of_other_outputs_and_of_images_that_cells_do_not_tile() -> None:
    config = SwinConfig((16, 16), 2, windows=(4, 4), **SWIN_VARIANTS["swinv2_mu"])
    shape = jax.eval_shape(
        SwinPredictor(config, 10).init_with_output, jax.random.key(0), patches_for(config)
    )[0]
    assert shape.shape == (2, 16, 10)
    odd = dataclasses.replace(config, image_size=(18, 16))
    with pytest.raises(ValueError, match="18x16 px are not tiled by the 4 px cells"):
        jax.eval_shape(SwinPredictor(odd).init, jax.random.key(0), patches_for(odd))


def test_version_1_has_a_table_and_one_bias() -> None:
    config = dataclasses.replace(SMALL, version=1)
    shapes = jax.eval_shape(Swin(config).init, jax.random.key(0), patches_for(config))["params"]
    attention = jax.tree.map(lambda leaf: leaf.shape, shapes["block_02"]["attn"])
    # the second stage's windows: 3x4
    assert attention["relative_position_bias"] == {"table": (5 * 7, 4)}
    assert set(attention["qkv"]) == {"kernel", "bias"} and "logit_scale" not in attention
    assert shapes["merge_0"]["norm"]["scale"].shape == (64,)
