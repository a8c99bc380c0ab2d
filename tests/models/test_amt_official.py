"""Every number of the official AMT fixture (AMT on MAE), in float64 and float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mae_official import Case, precision  # noqa: F401

from mim_jax.corruptions.attention_driven import (
    normalise_attention,
    partition,
    scores_from_noise,
    split_order,
)
from mim_jax.interop.official import from_mae
from mim_jax.models.encoder_decoder import DecoderConfig, EncoderDecoder
from mim_jax.models.masked_predictor import take_rows
from mim_jax.models.vit import ViTConfig
from mim_jax.targets.pixels import normalise_patches, patchify, unpatchify

CONFIG = ViTConfig(image_size=(24, 24), patch=4, width=32, depth=2, heads=4)
NETWORK = EncoderDecoder(CONFIG, DecoderConfig(16, 1, 2))
SPLITS = {"": (16, 14), "alt/": (27, 0)}


@pytest.fixture
def amt(precision: str) -> Case:  # noqa: F811
    return Case("amt_public", from_mae, precision)


def parts(case: Case, prefix: str = "") -> tuple[jax.Array, jax.Array, jax.Array]:
    """(masked, thrown, visible) of the fixture's permutation."""
    order = np.argsort(case.f[f"{prefix}ids_restore"], axis=1)
    return split_order(jnp.asarray(order), *SPLITS[prefix])


@partial(jax.jit, static_argnums=(4, 5))
def loss(params, image, visible, masked, norm: str, stop: bool = False):
    patches = patchify(image, 4)
    target = take_rows(jax.lax.stop_gradient(patches) if stop else patches, masked)
    predicted = NETWORK.apply({"params": params}, patches, visible, masked, method="predict_hidden")
    return jnp.mean(jnp.square(predicted - normalise_patches(target, norm)))


def test_attention_and_map(amt: Case) -> None:
    row = NETWORK.apply(
        {"params": amt.params}, patchify(amt.image, 4), method=lambda m, p: m.encoder.attention_row(p)
    )
    amt.close(row, "attention_cls64")
    maps = normalise_attention(row[..., 1:]).reshape(2, 6, 6)
    amt.close(maps, "attention_map64")
    np.testing.assert_allclose(maps, amt.f["attention_map"], atol=1e-5)


def test_draw_and_codes(amt: Case) -> None:
    """The weights are sums of the per-pixel map; the order is that of w / E; codes 1, 0, -1."""
    summed = amt.f["map"].reshape(2, 6, 4, 6, 4).sum(axis=(2, 4)).reshape(2, 36)
    np.testing.assert_allclose(summed, amt.f["map_weight"], rtol=1e-5)
    weights, noise = (jnp.asarray(amt.f[key].astype(amt.dtype)) for key in ("map_weight", "exp_noise"))
    drawn = partition(scores_from_noise(-jnp.log(noise), weights), *SPLITS[""])
    np.testing.assert_array_equal(np.concatenate(drawn, axis=1), amt.f["permutation"])
    for prefix in SPLITS:
        masked, thrown, _ = parts(amt, prefix)
        code = np.zeros((2, 36), np.int8)
        np.put_along_axis(code, np.asarray(masked), 1, axis=1)
        np.put_along_axis(code, np.asarray(thrown), -1, axis=1)
        np.testing.assert_array_equal(code, amt.f[f"{prefix}mask_code"])


@pytest.mark.parametrize("prefix", SPLITS)
def test_latents_predictions_and_losses(amt: Case, prefix: str) -> None:
    masked, _, visible = parts(amt, prefix)
    patches, weights = patchify(amt.image, 4), {"params": amt.params}
    amt.close(NETWORK.apply(weights, patches, visible, method="encode"), f"{prefix}latent64")
    both = NETWORK.apply(weights, patches, visible, masked, method="predict_all")
    place = jnp.argsort(jnp.concatenate([visible, masked], axis=1), axis=1)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([visible, masked], axis=1)), amt.f[f"{prefix}pred_index"]
    )
    amt.close(take_rows(both, place), f"{prefix}pred64")
    if not prefix:
        np.testing.assert_allclose(take_rows(both, place), amt.f["pred"], atol=1e-4)
    for norm, name in (("none", "loss"), ("joint", "loss_norm_pix")):
        value = loss(amt.params, amt.image, visible, masked, norm)
        amt.close(value, f"{prefix}{name}64", amt.losses)
        if not prefix:
            np.testing.assert_allclose(value, amt.f[name], atol=1e-5)


def test_gradients(amt: Case) -> None:
    masked, thrown, visible = parts(amt)
    weights, image = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=4)(
        amt.params, amt.image, visible, masked, "none"
    )
    amt.same_gradients(weights, amt.tree("grad64/", amt.dtype))
    stopped = jax.jit(jax.grad(loss, argnums=1), static_argnums=(4, 5))(
        amt.params, amt.image, visible, masked, "none", True
    )
    for ours, key in ((image, "grad_image64"), (stopped, "grad_image_stopped64")):
        theirs = amt.f[key].transpose(0, 2, 3, 1)
        assert np.abs(np.asarray(ours) - theirs).max() < amt.gradients * np.abs(theirs).max()
        at_thrown = np.take_along_axis(np.asarray(patchify(ours, 4)), np.asarray(thrown)[..., None], axis=1)
        assert (at_thrown == 0.0).all()
    assert unpatchify(patchify(amt.image, 4), (6, 6)).shape == amt.image.shape
