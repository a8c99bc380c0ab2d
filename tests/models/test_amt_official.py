"""AMT's network in detail: attention of CLS, latents and all predictions of the official fixture (AMT on MAE).

The draw, losses and gradients are compared in tests/methods/test_parity.py, through the method itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions.attention_driven import split_order
from mim_jax.interop.official import from_mae
from mim_jax.models.encoder_decoder import DecoderConfig, EncoderDecoder
from mim_jax.models.layers import gather_tokens
from mim_jax.models.vit import ViTConfig
from mim_jax.targets.pixels import patchify
from tests.official import Case

CONFIG = ViTConfig(image_size=(24, 24), patch=4, width=32, depth=2, heads=4)
NETWORK = EncoderDecoder(CONFIG, DecoderConfig(16, 1, 2))
SPLITS = {"": (16, 14), "alt/": (27, 0)}


@pytest.fixture
def amt(precision: str) -> Case:
    return Case("amt_public", from_mae, precision)


@jax.jit
def latents_and_predictions(params, image, visible, masked) -> tuple[jax.Array, jax.Array]:
    """Predictions of the masked and the visible patches in raster order."""
    patches, weights = patchify(image, 4), {"params": params}
    both = NETWORK.apply(weights, patches, visible, masked, method="predict_all")
    place = jnp.argsort(jnp.concatenate([visible, masked], axis=1), axis=1)
    return NETWORK.apply(weights, patches, visible, method="encode"), gather_tokens(both, place)


def test_attention_row(amt: Case) -> None:
    row = NETWORK.apply(
        {"params": amt.params}, patchify(amt.image, 4), method=lambda m, p: m.encoder.attention_row(p)
    )
    amt.close(row, "attention_cls64")


def test_weights_are_sums_of_the_map_over_each_patch(amt: Case) -> None:
    summed = amt.f["map"].reshape(2, 6, 4, 6, 4).sum(axis=(2, 4)).reshape(2, 36)
    np.testing.assert_allclose(summed, amt.f["map_weight"], rtol=1e-5)


@pytest.mark.parametrize("prefix", SPLITS)
def test_latents_and_predictions(amt: Case, prefix: str) -> None:
    order = np.argsort(amt.f[f"{prefix}ids_restore"], axis=1)
    masked, _, visible = split_order(jnp.asarray(order), *SPLITS[prefix])
    latent, pred = latents_and_predictions(amt.params, amt.image, visible, masked)
    amt.close(latent, f"{prefix}latent64")
    np.testing.assert_array_equal(
        np.sort(np.concatenate([visible, masked], axis=1)), amt.f[f"{prefix}pred_index"]
    )
    amt.close(pred, f"{prefix}pred64")
    if not prefix:
        amt.close(pred, "pred", 1e-4)  # the official float32 run
