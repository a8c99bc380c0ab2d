"""MAE and SimMIM as methods: sizes, decay, initialisation, leakage, baselines, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, keys, small_method

from mim_jax.interop.official import from_mae, from_simmim
from mim_jax.methods import Variables
from mim_jax.methods.rules import map_rules, names
from tests.conftest import official_optimisers

FULL = {"model.variant": "b", "model.image_size": 224, "model.patch": 16}
MAE_FULL = {**FULL, "method.decoder_width": 512, "method.decoder_depth": 8, "method.decoder_heads": 16}


def shapes_of(method):
    return jax.eval_shape(method.init_params, jax.random.key(0))


def count(shapes) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


@pytest.mark.slow
def test_parameter_counts() -> None:
    assert count(shapes_of(small_method("mae", MAE_FULL))) == 111_655_680
    assert count(shapes_of(small_method("simmim", FULL))) == 86_256_720


@pytest.mark.parametrize(("config", "overrides", "section", "convert"), [
    ("mae", MAE_FULL, "mae", from_mae), ("simmim", FULL, "simmim", from_simmim)
])  # fmt: skip
def test_official_decay_lists(config: str, overrides: dict, section: str, convert) -> None:
    method = small_method(config, overrides)
    shapes = shapes_of(method)
    decays = dict(
        zip(
            jax.tree.leaves(names(shapes)),
            jax.tree.leaves(map_rules(method.rules.decay, shapes)),
            strict=True,
        )
    )
    if config == "mae":
        assert (sum(decays.values()), len(decays) - sum(decays.values())) == (85, 167)
    listed = next(case for case in official_optimisers()[section]["weight_decay"] if "ViT" in case["model"])
    flat = {name: value for kind, value in (("decay", 1.0), ("no_decay", 0.0)) for name in listed[kind]}
    made = convert(
        {
            n: np.full(
                (3, 1) if n.startswith("decoder.0.w") else (3,) if n.startswith("decoder.0") else (1, 1), v
            )
            for n, v in flat.items()
        }
    )
    official = {
        n: bool(np.max(v)) for n, v in zip(jax.tree.leaves(names(made)), jax.tree.leaves(made), strict=True)
    }
    assert official == decays


@pytest.mark.slow
def test_initialisation() -> None:
    mae = small_method("mae", {"model.variant": "ti"}).init_params(jax.random.key(0))
    bound = (6 / (4 * 192)) ** 0.5
    assert float(jnp.abs(mae["encoder"]["block_00"]["attn"]["qkv"]["kernel"]).max()) == pytest.approx(
        bound, rel=0.01
    )
    assert float(jnp.std(mae["mask_token"])) == pytest.approx(0.02, rel=0.3)
    simmim = small_method("simmim", {"model.variant": "ti"}).init_params(jax.random.key(0))
    for index in (0, 5):
        kernel = simmim["encoder"][f"block_{index:02d}"]["mlp"]["fc2"]["kernel"]
        assert float(jnp.std(kernel)) == pytest.approx(0.010791 / (2 * (index + 1)) ** 0.5, rel=0.02)
    assert float(jnp.abs(simmim["head"]["kernel"]).max()) == pytest.approx(192**-0.5, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["mae", "simmim"])
def test_no_leakage_and_per_image_masks(config: str) -> None:
    method = small_method(config)
    view = method.corrupt(keys(8), batch(8), Variables())
    hidden = np.sort(np.asarray(view["hidden"]), axis=1)
    assert len({tuple(row) for row in hidden}) >= (6 if config == "mae" else 3)  # SimMIM has 4 units here
    params = jax.tree.map(lambda p: p + 0.05, method.init_params(jax.random.key(0)))

    def energy(patches):
        return jnp.sum(
            jnp.square(
                method.forward(Variables(params), {**view, "patches": patches}, keys(8), False)["pixels"]
            )
        )

    moved = np.abs(np.asarray(jax.jit(jax.grad(energy))(view["patches"]))).max(axis=2)
    for example in range(8):
        assert (moved[example, view["hidden"][example]] == 0.0).all()
        assert (moved[example, view["visible"][example]] > 0.0).all()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["mae", "simmim"])
def test_constant_baseline_is_the_image_mean(config: str) -> None:
    method = small_method(config, {"method.norm_pix": False})
    view = method.corrupt(keys(4), batch(4), Variables())
    total, number = method.baselines(view, {})["constant"]["loss"]
    patches = np.asarray(view["patches"]).reshape(4, -1, 3)
    error = np.asarray(view["target"]).reshape(4, -1, 3) - patches.mean(axis=1)[:, None]
    expected = np.square(error).mean() if config == "mae" else np.abs(error).mean()
    assert float(total.sum() / number.sum()) == pytest.approx(float(expected), rel=1e-5)


def test_costs_follow_the_spec() -> None:
    """docs/papers/amt.md 4.1: MAE 4.41 + 5.37 GMAC forward; ours leaves the visible rows of the decoder's last block out."""
    mae = small_method("mae", MAE_FULL)
    assert mae.flops() / 6 == pytest.approx(9.78e9, rel=0.03)
    simmim = small_method("simmim", FULL)
    assert simmim.flops() / 6 == pytest.approx(17.56e9, rel=0.02)


def test_impossible_settings() -> None:
    from mim_jax.config.check import ConfigError

    for config, overrides, words in (
        ("mae", {"method.mask_ratio": 0.0}, "mask_ratio"),
        ("mae", {"method.decoder_heads": 5}, "decoder_heads"),
        ("simmim", {"method.unit": 3}, "unit"),
        ("beyond_masking", {"method.task": "zoom_in+zoom_out"}, "only one of them"),
        ("beyond_masking", {"method.task": "blurr"}, "did you mean blur"),
        ("beyond_masking", {"method.task": "zoom_in", "method.zoom_in_size": 17}, "zoom_in_size"),
    ):
        with pytest.raises(ConfigError, match=words):
            small_method(config, overrides)
