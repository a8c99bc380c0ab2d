"""AMT as a method: docs/papers/amt.md section 10, T5 to T8, T11 to T13."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, keys, small_method

from mim_jax.config.check import ConfigError
from mim_jax.methods import Variables
from mim_jax.methods.attention_bank import attention_maps, permuted
from mim_jax.training.epochs import phase_of, phase_starts
from tests.conftest import official_optimisers

PHASES = {"method.start": 1, "method.interval": 1}
FULL = {
    **PHASES, "model.variant": "b", "model.image_size": 224, "model.patch": 16,
    "method.decoder_width": 512, "method.decoder_depth": 8, "method.decoder_heads": 16,
}  # fmt: skip
BASES = ["mae", "simmim"]
EIGHT = {"model.image_size": 32}  # 64 patches, 16 units


def amt(base: str = "mae", **more):
    return small_method(
        "amt", {**PHASES, **EIGHT, "method.base": base, **{k.replace("__", "."): v for k, v in more.items()}}
    )


def driven(method):
    return method.phases[-1].method


def with_maps(count: int = 8, size: int = 32):
    maps = np.random.default_rng(0).random((count, size // 4, size // 4)).astype(np.float32)
    return {**batch(count, size), "attention": maps}


def predicted(method, params, view, count=8):
    return jax.jit(lambda p, v, k: method.forward(Variables(p), v, k, False)["pixels"])(
        params, view, keys(count)
    )


def shaken(method, by: float):
    """Fresh parameters with noise in every one, so that none is 0."""

    @jax.jit
    def make(key):
        params = method.init_params(key)
        return jax.tree.map(lambda p: p + by * jax.random.normal(jax.random.key(1), p.shape), params)

    return make(jax.random.key(0))


def objective(method, view, keys):
    def value(params, patches):
        seen = {**view, "patches": patches}
        total, count = method.loss(method.forward(Variables(params), seen, keys, True), seen)["loss"]
        return jnp.sum(total) / jnp.sum(count)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("norm_pix", [False, True])
def test_thrown_pixels_do_not_matter(base: str, norm_pix: bool) -> None:
    """T5: noise in thrown patches changes neither loss nor gradients by a bit; their own gradient is exactly 0."""
    method = driven(amt(base, method__norm_pix=norm_pix))
    params = method.init_params(jax.random.key(0))

    def run(images):
        data = {**with_maps(), "image": images}
        view = method.corrupt(keys(8), data, Variables())
        return view, objective(method, view, keys(8))(params, view["patches"])

    clean = with_maps()["image"]
    view, (value, (weights, pixels)) = run(clean)
    gone = np.ones((8, 64), bool)
    np.put_along_axis(gone, np.concatenate([view["visible"], view["hidden"]], axis=1), False, axis=1)
    assert (gone.sum(axis=1) == 64 - view["visible"].shape[1] - view["hidden"].shape[1]).all() and gone.any()
    where = np.kron(gone.reshape(8, 8, 8), np.ones((1, 4, 4), bool))
    noisy = np.where(where[..., None], np.random.default_rng(1).integers(0, 256, clean.shape), clean).astype(
        np.uint8
    )
    assert (noisy != clean).any()
    _, (value_noisy, (weights_noisy, _)) = run(noisy)
    assert float(value) == float(value_noisy)
    jax.tree.map(np.testing.assert_array_equal, weights, weights_noisy)
    assert (np.abs(np.asarray(pixels)).max(axis=2)[gone] == 0.0).all()
    assert (
        np.abs(np.asarray(pixels)).max(axis=2)[np.arange(8)[:, None], np.asarray(view["visible"])] > 0
    ).all()


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_order_inside_a_group_does_not_matter(base: str) -> None:
    """T6."""
    method = driven(amt(base))
    params = method.init_params(jax.random.key(0))
    view = method.corrupt(keys(8), with_maps(), Variables())

    def value(view):
        total, count = method.loss({"pixels": predicted(method, params, view)}, view)["loss"]
        return float(jnp.sum(total) / jnp.sum(count))

    turned = {**view, "visible": view["visible"][:, ::-1], "hidden": jnp.roll(view["hidden"], 3, axis=1)}
    turned["target"] = jnp.roll(view["target"], 3, axis=1)
    assert value(turned) == pytest.approx(value(view), abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_nothing_thrown_is_the_base_method(base: str) -> None:
    """T7, T12: T = 0 and the same patches give the base's predictions; also with SimMIM's relative bias."""
    more = {"model__relative_bias": "shared", "model__positions": "none"} if base == "simmim" else {}
    method = amt(base, method__mode="am", **more)
    params = shaken(method, 0.01)
    view = driven(method).corrupt(keys(8), with_maps(), Variables())
    assert view["visible"].shape[1] + view["hidden"].shape[1] == 64
    ours = predicted(driven(method), params, view)
    np.testing.assert_allclose(ours, predicted(method, params, view), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["shared", "per_block"])
def test_relative_bias_follows_the_patches_that_are_left(bias: str) -> None:
    """Throwing a patch equals hiding its key from everybody: with the bias gathered per image (docs/papers/amt.md 5)."""
    method = driven(amt("simmim", model__relative_bias=bias, model__positions="none"))
    params = shaken(method, 0.05)
    view = method.corrupt(keys(2), with_maps(2), Variables())
    kept = predicted(method, params, view, 2)
    module, order = method.module, jnp.concatenate([view["visible"], view["hidden"]], axis=1)

    def masked_attention(module, patches, mask, present):
        x = module.encoder.embed(patches)
        x = jnp.where(mask[..., None], module.mask_token, x)
        x = jnp.concatenate([module.encoder.cls_tokens(x), x], axis=1) + module.encoder.positions()
        allowed = jnp.concatenate([jnp.ones((len(x), 1), bool), present], axis=1)[:, None, None, :]
        return module.head(module.encoder.final_norm(module.encoder.apply_blocks(x, mask=allowed)[-1])[:, 1:])

    present = jax.vmap(lambda at: jnp.zeros(64, bool).at[at].set(True))(order)
    mask = jax.vmap(lambda at: jnp.zeros(64, bool).at[at].set(True))(view["hidden"])
    whole = jax.jit(lambda p, *rest: module.apply({"params": p}, *rest, method=masked_attention))(
        params, view["patches"], mask, present
    )
    np.testing.assert_allclose(kept, jnp.take_along_axis(whole, view["hidden"][..., None], axis=1), atol=2e-5)


@pytest.mark.slow
def test_token_counts_at_full_size() -> None:
    """T8: encoder 31 and decoder 119 of ViT-B/16; forward and backward 0.607 of MAE's FLOPs."""
    method = small_method("amt", FULL)
    last = driven(method)
    assert (last.num_hidden, last.num_thrown, last.num_visible) == (88, 78, 30)
    shapes = jax.eval_shape(lambda: last.init_params(jax.random.key(0)))
    patches, index = jnp.zeros((1, 196, 768)), lambda n: jnp.zeros((1, n), jnp.int32)
    latent = jax.eval_shape(
        lambda p: last.module.apply({"params": p}, patches, index(30), method="encode"), shapes
    )
    assert latent.shape == (1, 31, 768)
    rows = jax.eval_shape(
        lambda p, x: last.module.apply({"params": p}, x, index(30), index(88), method="decoder_inputs"),
        shapes,
        latent,
    )
    assert rows.shape == (1, 119, 512)
    assert last.flops() / method.flops() == pytest.approx(0.607, abs=0.01)
    simmim = small_method("amt", {**FULL, "method.base": "simmim"})
    assert (driven(simmim).num_masked, driven(simmim).num_visible) == (88, 56)
    assert driven(simmim).flops() / simmim.flops() == pytest.approx(0.73, abs=0.03)


def test_schedule() -> None:
    """T11: first refresh after epoch `start`, attention from the next epoch on; the fixture's lists."""
    for case in official_optimisers()["amt"]["epoch_logic"]:
        method = small_method(
            "amt", {"schedule.epochs": float(case["epochs"]), "method.start": 40, "method.interval": 40}
        )
        assert [phase.first_epoch for phase in method.phases] == [0, case["first_attention_epoch"]]
        due = [
            e for e in range(case["epochs"] - 1) if method.refreshes[0].due(e)
        ]  # nothing follows the last epoch
        assert due == case["updates_after_epoch"]
    examples, size = 96, 16
    assert phase_starts(method, examples, size) == [0, 41 * examples // size]
    assert [phase_of(method, s, examples, size) for s in (0, 41 * 6 - 1, 41 * 6)] == [0, 0, 1]
    assert phase_starts(method, 100, 36) == [0, 114]  # 41 epochs are 113.9 batches


@pytest.mark.parametrize("base", BASES)
def test_phases_share_parameters_and_random_is_the_base(base: str) -> None:
    method = amt(base)
    assert jax.eval_shape(method.init_params, jax.random.key(0)) == jax.eval_shape(
        driven(method).init_params, jax.random.key(0)
    )
    assert [phase.name for phase in method.phases] == ["random", "attention"]
    assert not method.phases[0].method.driven and method.phases[1].method.driven
    data = with_maps()
    other = {**data, "attention": data["attention"][::-1]}
    np.testing.assert_array_equal(
        method.corrupt(keys(8), data, Variables())["hidden"],
        method.corrupt(keys(8), other, Variables())["hidden"],
    )
    assert (
        np.asarray(driven(method).corrupt(keys(8), data, Variables())["hidden"])
        != np.asarray(driven(method).corrupt(keys(8), other, Variables())["hidden"])
    ).any()


@pytest.mark.slow
def test_more_attention_is_hidden_more_often_and_follows_crop_and_flip() -> None:
    method = driven(amt())
    maps = np.full((64, 8, 8), 0.001, np.float32)
    maps[:, :, 4:] = 1.0  # the right half
    data = {**with_maps(64), "attention": maps}

    def share_right(data) -> float:
        hidden = np.asarray(method.corrupt(keys(64), data, Variables())["hidden"])
        return float((hidden % 8 >= 4).mean())

    assert share_right(data) > 0.97
    assert share_right({**data, "flip": np.ones(64, bool)}) < 0.03
    right_half = np.tile(np.array([0, 0.5, 1, 0.5], np.float32), (64, 1))
    assert 0.4 < share_right({**data, "box": right_half}) < 0.6
    corner = driven(amt(method__mapping="official_corner"))
    hidden = np.asarray(corner.corrupt(keys(64), data, Variables())["hidden"])
    assert 0.4 < (hidden % 8 >= 4).mean() < 0.75  # the corner knows nothing of the right half


def test_controls() -> None:
    ones = amt(method__control="random_throw")
    assert ones.refreshes == ()
    hidden = driven(ones).corrupt(keys(8), batch(8, 32), Variables())["hidden"]
    assert hidden.shape == (8, 28)
    shuffled = amt(method__control="shuffled_bank")
    index = np.arange(96, dtype=np.int32)
    rows = shuffled.refreshes[0].row_of(index, 96, 3)
    assert sorted(rows.tolist()) == index.tolist() and (rows != index).sum() > 80
    np.testing.assert_array_equal(rows[5:9], permuted(index[5:9], 96, 3))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_types_of_the_bank(dtype: str) -> None:
    method = amt(method__bank_dtype=dtype)
    one, params = method.refreshes[0], method.init_params(jax.random.key(0))
    rows = one.compute(params, batch(8, 32))
    assert rows.dtype == dtype == one.dtype and rows.shape == (8, *one.shape)
    exact = attention_maps(method, params, jnp.asarray(batch(8, 32)["image"]))
    weights = driven(method).bank.weights({**batch(8, 32), "attention": rows}, {})
    np.testing.assert_allclose(
        weights, exact.reshape(8, 64), atol={"float32": 2e-6, "float16": 1e-3, "uint8": 0.002}[dtype]
    )
    on_device = amt(method__bank_dtype=dtype, method__bank="device")
    assert on_device.refreshes[0].on_device
    from_bank = driven(on_device).bank.weights(batch(8, 32), {"attention": rows})
    np.testing.assert_array_equal(from_bank, weights)


@pytest.mark.slow
def test_maps_without_cls_take_the_mean_query() -> None:
    method = amt(model__cls=False)
    params = method.init_params(jax.random.key(0))
    maps = attention_maps(method, params, jnp.asarray(batch(4, 32)["image"]))
    assert (
        maps.shape == (4, 8, 8)
        and float(maps.min()) >= 0
        and float(maps.max()) <= 1
        and float(maps.std()) > 0
    )


@pytest.mark.slow
def test_attention_maps_follow_their_patches() -> None:
    """Without positions, exchanging two patches exchanges their two weights: the CLS token is not in the map."""
    method = amt(model__positions="none")
    params = shaken(method, 0.1)
    images = np.array(batch(2, 32)["image"])
    exchanged = images.copy()
    exchanged[:, :4, :4], exchanged[:, 28:, 28:] = images[:, 28:, 28:], images[:, :4, :4]
    maps, moved = (np.asarray(attention_maps(method, params, jnp.asarray(x))) for x in (images, exchanged))
    expected = maps.copy()
    expected[:, 0, 0], expected[:, 7, 7] = maps[:, 7, 7], maps[:, 0, 0]
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    assert np.abs(maps - expected).max() > 1e-3


@pytest.mark.slow
def test_same_indices_on_one_two_and_eight_devices() -> None:
    """T13, and issue 5 point 4: the same bank, the same indices."""
    method = driven(amt())
    found = []
    for devices in (1, 2, 8):
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((devices,), ("data",), axis_types=auto, devices=jax.devices()[:devices])
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        data, own = jax.device_put(with_maps(16), sharding), jax.device_put(keys(16), sharding)
        view = jax.jit(method.corrupt)(own, data, Variables())
        found.append([np.asarray(view[name]) for name in ("visible", "hidden")])
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_impossible_settings() -> None:
    for overrides, words in (
        ({"method.base": "maee"}, "mae"),
        ({"method.mode": "amtt"}, "amt"),
        ({"schedule.epochs": 1.0}, "leaves attention no epoch"),
        ({"method.interval": 0}, "interval"),
        ({"method.mask_ratio": 0.7}, "leave"),
        ({"method.base": "simmim", "method.mask_ratio": 0.9}, "visible"),
        ({"method.bank_dtype": "int8"}, "uint8"),
        ({"method.mapping": "corner"}, "official_corner"),
    ):
        with pytest.raises(ConfigError, match=words):
            small_method("amt", {**PHASES, **EIGHT, **overrides})
