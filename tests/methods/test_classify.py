"""Classification: layer ids and decay against the papers' lists, heads, probes, what is frozen, and the golden LARS step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from small import batch, classes, keys, small_config, small_method

from mim_jax.config.check import ConfigError
from mim_jax.interop.official import from_mae
from mim_jax.methods import Variables, build_method, complete_options
from mim_jax.methods.rules import map_rules, names, vit_layers
from mim_jax.models.classifier import BN_EPS
from mim_jax.training.optimiser import make_optimiser
from tests.conftest import official_optimisers

CLASSES = {"method.num_classes": 4}
PROBE = {**CLASSES, "method.probe": True, "optim.name": "lars"}


def listed(section: str, key: str):
    return official_optimisers()[section][key]


def classifier(**more):
    return small_method("supervised", {**CLASSES, **{k.replace("__", "."): v for k, v in more.items()}})


def config_of(method_config: str, fixed, **more):
    return small_config(method_config, {**fixed, **{k.replace("__", "."): v for k, v in more.items()}})


def probe(**more):
    return small_method("linear_probe", {**PROBE, **{k.replace("__", "."): v for k, v in more.items()}})


@pytest.mark.slow
def test_layer_ids_and_decay_of_the_official_lists() -> None:
    """MAE's fine-tuning lists, leaf by leaf: id, scale and decay."""
    case = listed("mae", "layer_decay")[0]
    method = classifier(
        model__variant="b", model__image_size=224, model__patch=16, model__positions="learned"
    )
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    rules = method.rules
    scales = jax.tree.map(
        lambda id: case["layer_decay"] ** (rules.last_layer - id), map_rules(rules.layers, shapes)
    )
    ours = {
        name: (scale, 0.05 * decay)
        for name, scale, decay in zip(
            jax.tree.leaves(names(shapes)), jax.tree.leaves(scales),
            jax.tree.leaves(map_rules(rules.decay, shapes)), strict=True,
        )
    }  # fmt: skip
    rename = {n.replace("fc_norm.", "norm."): v for n, v in case["params"].items()}
    shaped = {
        n: np.full(
            (3,)
            if n.endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight"))
            or "token" in n
            or "pos_embed" in n
            else (1, 1),
            i,
        )
        for i, n in enumerate(rename)
    }
    tree = from_mae(shaped)
    order = {
        name: int(np.max(leaf))
        for name, leaf in zip(jax.tree.leaves(names(tree)), jax.tree.leaves(tree), strict=True)
    }
    values = list(rename.values())
    official = {name: (values[i][1], values[i][2]) for name, i in order.items()}
    assert official.keys() == ours.keys()
    for name, (scale, decay) in official.items():
        assert ours[name] == (pytest.approx(scale, rel=1e-12), decay), name


def test_simmim_and_mapet_layer_scales() -> None:
    for section in ("simmim", "mapet"):
        case = listed(section, "layer_decay")[0]
        rules = vit_layers(12)
        for name, ours in (("cls_token", "encoder/cls_token"), ("blocks.3.norm1.weight", "encoder/block_03/norm1/scale"),
                           ("blocks.11.norm1.weight", "encoder/block_11/norm1/scale"), ("head.weight", "head/kernel")):  # fmt: skip
            scale = case["params"][name][-2]
            (id,) = jax.tree.leaves(map_rules(rules, _nested(ours)))
            assert case["layer_decay"] ** (13 - id) == pytest.approx(scale), (section, name)


def _nested(name: str):
    tree = jnp.zeros(())
    for part in reversed(name.split("/")):
        tree = {part: tree}
    return tree


@pytest.mark.slow
def test_golden_lars_steps() -> None:
    """docs/papers/amt.md 1.5 and every step of the fixture: matrices by trust ratio, vectors plain, the rate after the momentum."""
    method, whole = probe(), config_of("linear_probe", PROBE)
    case = listed("mae", "lars")[0]
    params = {"head": {"kernel": jnp.asarray(case["params"][0]), "bias": jnp.asarray(case["params"][1])}}
    rates = [step["lr"] for step in case["steps"]]
    o = dataclasses.replace(whole.optim, weight_decay=case["weight_decay"], lr=1.0)
    config = dataclasses.replace(whole, optim=o)
    rules = dataclasses.replace(method.rules, frozen=((r".", False),))
    import mim_jax.training.optimiser as module

    before = module.learning_rate
    try:
        module.learning_rate = lambda step, config, per_epoch: jnp.asarray(rates)[step]
        update = make_optimiser(config, rules, params, 1.0)
        state = update.init(params)
        for step in case["steps"]:
            grads = {"head": {"kernel": jnp.asarray(step["grads"][0]), "bias": jnp.asarray(step["grads"][1])}}
            changes, state = update.update(grads, state, params)
            params = optax.apply_updates(params, changes)
            np.testing.assert_allclose(params["head"]["kernel"], step["params_after"][0], rtol=1e-5)
            np.testing.assert_allclose(params["head"]["bias"], step["params_after"][1], rtol=1e-5)
    finally:
        module.learning_rate = before


@pytest.mark.slow
def test_layer_decay_scales_updates_and_frozen_parameters_have_no_state() -> None:
    method, config = classifier(), config_of("supervised", CLASSES)
    params = method.init_params(jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, params)

    def change(layer_decay: float):
        o = dataclasses.replace(config.optim, layer_decay=layer_decay, weight_decay=0.0, clip_norm=None)
        update = make_optimiser(dataclasses.replace(config, optim=o), method.rules, params, 6.0)
        state = update.init(params)
        for _ in range(2):  # the rate of update 0 is 0
            made, state = update.update(ones, state, params)
        return made

    plain, decayed = change(1.0), change(0.5)
    ratio = jax.tree.map(lambda a, b: float((b / a).ravel()[0]), plain, decayed)
    assert ratio["head"]["kernel"] == pytest.approx(1.0)
    assert ratio["encoder"]["block_01"]["mlp"]["fc1"]["kernel"] == pytest.approx(0.5)
    assert ratio["encoder"]["patch_embed"]["kernel"] == pytest.approx(0.125)
    frozen = probe()
    shapes = jax.eval_shape(frozen.init_params, jax.random.key(0))
    state = jax.eval_shape(
        make_optimiser(config_of("linear_probe", PROBE), frozen.rules, shapes, 6.0).init, shapes
    )
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(), (32, 4), (4,)}


@pytest.mark.slow
def test_a_probe_moves_its_head_only_and_keeps_running_statistics() -> None:
    method = probe(augment__crop="random_resized")
    assert not method.cached and method.refreshes == ()
    params, data = method.init_params(jax.random.key(0)), jax.tree.map(jnp.asarray, batch(16))
    variables = method.prepare(None, 0)
    view = method.corrupt(keys(), data, variables)

    def value(params):
        outputs = method.forward(variables.replace(params=params), view, keys(), True)
        total, _ = method.loss(outputs, view)["loss"]
        return jnp.sum(total), outputs

    grads, outputs = jax.jit(jax.grad(value, has_aux=True))(params)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads["encoder"]))
    assert (np.asarray(grads["head"]["kernel"]) != 0).any()
    features = np.asarray(method.encode(params, jnp.asarray(data["image"])).pooled())
    held = outputs["batch_stats"]
    np.testing.assert_allclose(held["mean"], 0.1 * features.mean(axis=0), atol=1e-5)
    variance = 0.9 + 0.1 * features.var(axis=0, ddof=1)
    np.testing.assert_allclose(held["variance"], variance, rtol=1e-4, atol=1e-6)
    scores = method.class_scores(Variables(params, batch_stats=held), jnp.asarray(data["image"]))
    normed = (features - np.asarray(held["mean"])) / np.sqrt(np.asarray(held["variance"]) + BN_EPS)
    expected = normed @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.slow
def test_probe_is_logistic_regression() -> None:
    """On the same features within half a point of scikit-learn's, on 4000 held-out examples."""
    rng = np.random.default_rng(0)
    centres, spread = rng.normal(size=(4, 32)), rng.normal(size=(32, 32)) / 3

    def draw(count: int):
        labels = rng.integers(0, 4, count)
        return (centres[labels] + 5.0 * rng.normal(size=(count, 32)) @ spread).astype(np.float32), labels

    (train, labels), (test, test_labels) = draw(2000), draw(4000)
    scaler = StandardScaler().fit(train)
    oracle = LogisticRegression(C=1e3, max_iter=5000).fit(scaler.transform(train), labels)
    expected = oracle.score(scaler.transform(test), test_labels)
    steps = {"schedule.steps": 600, "schedule.warmup_steps": 60, "optim.lr": 16.0}
    method = small_method("linear_probe", {**PROBE, **steps})
    params, held = method.init_params(jax.random.key(0)), method.prepare(None, 0).batch_stats
    config = small_config("linear_probe", {**PROBE, **steps})
    update = make_optimiser(config, method.rules, params, 6.0)
    view = {"features": jnp.asarray(train), "targets": jax.nn.one_hot(labels, 4)}

    @jax.jit
    def step(carry):
        params, state, held = carry

        def value(params):
            outputs = method.forward(Variables(params, batch_stats=held), view, keys(), True)
            total, count = method.loss(outputs, view)["loss"]
            return jnp.sum(total) / jnp.sum(count), outputs

        grads, outputs = jax.grad(value, has_aux=True)(params)
        changes, state = update.update(grads, state, params)
        return optax.apply_updates(params, changes), state, outputs["batch_stats"]

    carry = (params, update.init(params), held)
    for _ in range(600):
        carry = step(carry)
    params, _, held = carry
    scores = method.apply(params, jnp.asarray(test), held["mean"], held["variance"], method="classify")
    assert 0.5 < expected < 0.95
    assert float((np.asarray(scores).argmax(axis=1) == test_labels).mean()) == pytest.approx(
        expected, abs=0.005
    )


@pytest.mark.parametrize("layer", [-1, 0])
def test_cached_features_are_those_of_the_images(layer: int) -> None:
    method = probe(method__layer=layer)
    assert method.cached and method.view(train=True).keys == {}
    assert [refresh.name for refresh in method.refreshes] == ["features", "label"]
    params, data = method.init_params(jax.random.key(0)), jax.tree.map(jnp.asarray, batch(16))
    rows = method.refreshes[0].compute(params, data)
    expected = method.encode(params, jnp.asarray(data["image"])).pooled(layer)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    view = method.corrupt(keys(), {"features": rows, "label": data["label"]}, Variables())
    whole = probe(method__layer=layer, method__cache=False)
    variables = method.prepare(None, 0).replace(params=params)
    ours = method.forward(variables, view, keys(), True)["logits"]
    np.testing.assert_allclose(
        ours,
        whole.forward(variables, whole.corrupt(keys(), data, Variables()), keys(), True)["logits"],
        atol=1e-4,
    )
    assert [e for e in range(-1, 50) if method.refreshes[0].due(e)] == [-1] and not method.refreshes[0].saved
    np.testing.assert_array_equal(method.refreshes[1].compute(params, data), data["label"])


@pytest.mark.slow
def test_mixing_keeps_label_mass_and_evaluation_mixes_nothing() -> None:
    method = classifier(method__mixup=0.8, method__cutmix=1.0, method__rand_augment=2, method__erase=0.25)
    data = {**batch(16), "flip": np.ones(16, bool)}
    view = jax.jit(method.corrupt)(keys(), data, Variables())
    np.testing.assert_allclose(np.asarray(view["targets"]).sum(axis=1), 1.0, atol=1e-5)
    assert np.isfinite(np.asarray(view["images"])).all()
    params = method.init_params(jax.random.key(0))
    scores = method.class_scores(Variables(params), jnp.asarray(data["image"]))
    np.testing.assert_allclose(
        scores, method.apply(params, method.patches(jnp.asarray(data["image"]))), atol=1e-5
    )


def test_impossible_settings() -> None:
    for config, overrides, words in (
        ("supervised", {"method.num_classes": 0}, "labels"),
        ("supervised", {**CLASSES, "method.pool": "max"}, "mean"),
        ("supervised", {**CLASSES, "method.pool": "cls", "model.cls": False}, "no CLS"),
        ("linear_probe", {**PROBE, "method.layer": 9}, "block"),
    ):
        with pytest.raises(ConfigError, match=words):
            small_method(config, overrides)
    with pytest.raises(ConfigError, match="has 7 classes"):
        complete_options(small_config("supervised", CLASSES), classes(7))
    assert build_method(complete_options(small_config("supervised", CLASSES), classes(4))).num_classes == 4


@pytest.mark.slow
def test_several_labels_an_image() -> None:
    """Binary cross-entropy of every class; where an image does not count, neither loss nor gradient."""
    method = classifier(
        method__multi_label=True, method__label_smoothing=0.0, method__mixup=0.0, method__cutmix=0.0
    )
    labels = np.random.default_rng(0).integers(-1, 2, (16, 4)).astype(np.int8)
    given = {**batch(), "labels": labels}
    assert "labels" in method.view(True).keys and "labels" in method.view(False).keys
    view = method.corrupt(keys(), given, Variables())
    logits = jax.random.normal(jax.random.key(0), (16, 4))
    total, count = method.loss({"logits": logits}, view)["loss"]
    kept = labels >= 0
    expected = log_loss(labels[kept], np.asarray(jax.nn.sigmoid(logits))[kept], normalize=False)
    assert float(total.sum()) == pytest.approx(expected, rel=1e-5) and int(count.sum()) == kept.sum()
    slope = jax.grad(lambda x: method.loss({"logits": x}, view)["loss"][0].sum())(logits)
    assert np.all(np.asarray(slope)[~kept] == 0) and np.all(np.asarray(slope)[kept] != 0)
    with pytest.raises(ConfigError, match="mixup, cutmix and label_smoothing"):
        classifier(method__multi_label=True, method__mixup=0.8)


def test_the_probes_normalisation_is_torchs_with_the_published_epsilon() -> None:
    """BatchNorm1d(affine=False, eps=1e-6) on features whose variance is as small as that epsilon."""
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    method = probe()
    features = (1e-3 * np.random.default_rng(0).normal(size=(16, method.width))).astype(np.float32)
    params = jax.jit(method.init_params)(jax.random.key(0))
    params = {**params, "head": {"kernel": jnp.eye(method.width, 4), "bias": jnp.zeros(4)}}
    mean, variance = features.mean(axis=0), features.var(axis=0)
    ours = method.apply(params, *map(jnp.asarray, (features, mean, variance)), method="classify")
    norm = torch.nn.BatchNorm1d(method.width, affine=False, eps=1e-6)
    np.testing.assert_allclose(ours, norm(torch.tensor(features)).numpy()[:, :4], rtol=1e-4)


@pytest.mark.parametrize("bias", ["shared", "per_block"])
def test_relative_position_tables_of_a_vit_decay(bias: str) -> None:
    """Two dimensions and no entry in the official lists of exceptions: they decay; a Swin's are excepted by name."""
    method = small_method("supervised", {"model.relative_bias": bias, "method.num_classes": 4})
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    decays = zip(
        jax.tree.leaves(names(shapes)), jax.tree.leaves(map_rules(method.rules.decay, shapes)), strict=True
    )
    tables = {name: yes for name, yes in decays if name.endswith("/table")}
    assert len(tables) == (2 if bias == "per_block" else 1) and all(tables.values())
