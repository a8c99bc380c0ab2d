"""SimMIM and classification on a Swin: what is hidden, what leaks, rates by layer, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, keys, small_config, small_method

from mim_jax.config.check import ConfigError
from mim_jax.methods import Variables
from mim_jax.methods.flops import swin_flops
from mim_jax.methods.rules import first_match, map_rules, names, ones, zeros
from mim_jax.methods.swin_rules import swin_layers
from mim_jax.models.swin import SWIN_VARIANTS, Swin, SwinConfig

SWIN = {"model.variant": "swinv2_mu", "model.image_size": 16, "model.patch": 2, "model.window": 4}


@pytest.fixture(scope="module")
def method():
    return small_method("simmim", {**SWIN, "method.local_norm": 0})


@pytest.fixture(scope="module")
def params(method):
    fresh = jax.jit(method.init_params)(jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), fresh)


@pytest.mark.slow
def test_counts_at_full_size() -> None:
    """192 px: 22 of 36 cells of 32 px, each of 8 x 8 patches (docs/papers/dark_secrets.md 1.4)."""
    method = small_method(
        "simmim", {"model.variant": "swinv2_b", "model.image_size": None, "model.patch": None}
    )
    assert (method.net.image_size, method.net.patch, method.side, method.cells) == ((192, 192), 4, 32, (6, 6))
    assert (method.num_masked, method.unit, method.local_norm, method.net.norm_eps) == (22, 1, 47, 1e-5)
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(shapes["encoder"]))
    assert count == 86_893_816


@pytest.mark.slow
def test_no_leakage(method, params) -> None:
    """A hidden cell's pixels change no prediction; a visible cell's do."""
    view = jax.jit(method.corrupt)(keys(2), batch(2), Variables())
    patch = method.net.patch

    def predictions(patches):
        return method.forward(Variables(params), {**view, "patches": patches}, keys(2), False)["pixels"]

    slope = np.abs(jax.jit(jax.grad(lambda p: jnp.sum(predictions(p) ** 2)))(view["patches"])).sum(-1)
    inside = method.side // patch
    grid = slope.reshape(2, method.cells[0], inside, method.cells[1], inside).sum((2, 4)).reshape(2, -1)
    for image in range(2):
        assert np.all(grid[image, view["hidden"][image]] == 0.0)
        assert np.all(grid[image, view["visible"][image]] > 0.0)


@pytest.mark.slow
def test_the_picture_and_the_baseline_speak_of_cells(method, params) -> None:
    def run(given):
        view = method.corrupt(keys(2), given, Variables())
        outputs = method.forward(Variables(params), view, keys(2), False)
        return view, outputs, method.loss(outputs, view), method.baselines(view, {})

    view, outputs, terms, baselines = jax.jit(run)(batch(2))
    assert view["target"].shape == (2, method.num_masked, 3 * 4**2)
    assert np.isfinite(terms["loss"][0]).all() and baselines["constant"]["loss"][0].shape == (2,)
    picture = method.image_grid(view, outputs, Variables())
    assert picture.columns["original"].shape == (2, 16, 16, 3)
    hidden = (picture.columns["masked input"] != picture.columns["original"]).any(-1)
    assert hidden.reshape(2, 4, 4, 4, 4).any((2, 4)).sum() <= 2 * method.num_masked
    assert (
        small_method("simmim", {**SWIN, "method.local_norm": 5}).image_grid(view, outputs, Variables())
        is None
    )


def test_layer_ids_of_simmim() -> None:
    """Patch embedding 0, block g: g + 1, a merging with the blocks before it, the rest n - 1 = 25."""
    net = SwinConfig(**SWIN_VARIANTS["swinv2_b"])
    ids = swin_layers(net)
    cases = {
        "patch_embed/kernel": 0,
        "patch_norm/scale": 0,
        "block_00/norm1/bias": 1,
        "block_23/mlp/fc1/kernel": 24,
    }
    cases |= {
        "merge_0/reduction/kernel": 2,
        "merge_1/norm/scale": 4,
        "merge_2/norm/scale": 22,
        "norm/scale": 25,
    }
    for name, layer in cases.items():
        assert first_match(ids, f"encoder/{name}") == layer, name
    assert first_match(ids, "head/kernel") == 25


def test_decay_leaves_the_position_network_alone(method) -> None:
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    decayed = map_rules(method.rules.decay, shapes)
    chosen = {
        name
        for name, decay in zip(jax.tree.leaves(names(shapes)), jax.tree.leaves(decayed), strict=True)
        if decay
    }
    assert not [n for n in chosen if "cpb" in n or n.endswith(("bias", "scale")) or "mask_token" in n]
    assert {n for n in chosen if "block_00" in n} == {
        f"encoder/block_00/{part}/kernel" for part in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
    }
    assert first_match(method.rules.init, "encoder/block_01/norm2/scale") is zeros
    assert first_match(method.rules.init, "encoder/merge_0/norm/scale") is ones


@pytest.mark.slow
def test_flops_are_xlas() -> None:
    net = SwinConfig((32, 32), 2, 32, (2, 2), (2, 4), (4, 4))
    module = Swin(net)
    tokens = jax.ShapeDtypeStruct((4, net.num_patches, net.width), jnp.float32)
    params = jax.eval_shape(
        lambda key: module.init(key, jnp.zeros((1, net.num_patches, 12))), jax.random.key(0)
    )

    def loss(params, tokens):
        return jnp.sum(module.apply(params, tokens, method="apply_blocks")[-1])

    cost = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, tokens).compile().cost_analysis()
    assert cost["flops"] / 4 == pytest.approx(
        swin_flops(net), rel=0.12
    )  # norms and softmax weigh more in a small one


@pytest.mark.slow
def test_fine_tuning_and_probing() -> None:
    options = {**SWIN, "method.num_classes": 4, "data.source": "digits", "method.rand_augment": 0}
    tuned = small_method("finetune", options)
    shapes = jax.eval_shape(tuned.init_params, jax.random.key(0))
    assert tuned.rules.not_inherited == () and shapes["head"]["kernel"].shape == (32, 4)
    params = tuned.init_params(jax.random.key(0))
    images = batch(3)["image"]
    scores = jax.jit(lambda p: tuned.class_scores(Variables(p), images))(params)
    features = jax.jit(lambda p: tuned.encode(p, images).pooled())(params)
    np.testing.assert_allclose(scores, features @ params["head"]["kernel"], atol=1e-5)
    probe = small_method("linear_probe", {**options, "method.layer": 1})
    assert probe.width == 16 and probe.refreshes[0].shape == (16,)


def test_impossible_settings() -> None:
    for file, change, says in (
        ("mae", {}, "mae needs a ViT"),
        ("mapet", {}, "needs a ViT"),
        ("simmim", {"model.width": 3}, r"config\.model\.width is a ViT's"),
        ("simmim", {"model.image_size": 18}, "multiple of 4, the pixels of a cell"),
        ("simmim", {"method.local_norm": 4}, "odd and at least 3"),
        ("simmim", {"model.variant": "swinv2_x"}, "did you mean swinv2_"),
    ):
        with pytest.raises(ConfigError, match=says):
            small_method(file, {**SWIN, **change})
    assert small_config("simmim", SWIN).model.norm_eps == 1e-5
