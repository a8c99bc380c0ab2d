"""MAE's and SimMIM's networks in detail: latents, all predictions, whole-image features; transformers' ViTMAE as another oracle.

Losses and gradients are compared in tests/methods/test_parity.py, through the methods themselves.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions.masking import split_by_noise, unit_mask_from_noise
from mim_jax.interop.official import from_mae, from_simmim
from mim_jax.models.classifier import Classifier
from mim_jax.models.encoder_decoder import DecoderConfig, EncoderDecoder
from mim_jax.models.layers import gather_tokens
from mim_jax.models.masked_predictor import MaskedPredictor
from mim_jax.models.positions import sincos_2d
from mim_jax.models.vit import ViTConfig
from mim_jax.targets.pixels import patchify, unpatchify
from tests.conftest import official
from tests.official import Case, split_heads
from tests.oracles import oracle
from tests.production import fills, production, run

# The fixture's own tables are fed in as learned positions (see its README).
MAE_CONFIG = ViTConfig(image_size=(32, 32), patch=8, width=32, depth=2, heads=4)
MAE = EncoderDecoder(MAE_CONFIG, DecoderConfig(24, 1, 3))
SIMMIM_CONFIG = ViTConfig(
    image_size=(32, 32), patch=4, width=32, depth=2, heads=4, positions="none", relative_bias="shared",
    qkv_bias="qv", layer_scale=0.1,
)  # fmt: skip
SIMMIM = MaskedPredictor(SIMMIM_CONFIG, 48)


@pytest.fixture
def mae(precision: str) -> Case:
    return Case("mae_public", from_mae, precision)


@jax.jit
def latents_and_predictions(params, image, visible, hidden) -> tuple[jax.Array, jax.Array]:
    """Predictions of all patches in raster order."""
    patches, place = patchify(image, 8), jnp.argsort(jnp.concatenate([visible, hidden], axis=1), axis=1)
    latent = MAE.apply({"params": params}, patches, visible, method="encode")
    pred = MAE.apply({"params": params}, patches, visible, hidden, method="predict_all")
    return latent, gather_tokens(pred, place)


def test_mae_latents_and_predictions(mae: Case) -> None:
    for prefix, kept in (("alt/", 8), ("", 4)):
        visible, hidden = split_by_noise(jnp.asarray(mae.f["noise"]), kept)
        latent, pred = latents_and_predictions(mae.params, mae.image, visible, hidden)
        mae.close(latent, f"{prefix}latent64")
        mae.close(pred, f"{prefix}pred64")
    mae.close(latent, "latent", 1e-4)  # the official float32 run
    mae.close(pred, "pred", 1e-4)


def test_mae_whole_image_features(mae: Case) -> None:
    """The mean of the patches, then a fresh norm; CLS is in tests/methods/test_parity.py."""
    patches = patchify(mae.image, 8)
    norm = {"scale": mae.f["ft/fc_norm.weight"], "bias": mae.f["ft/fc_norm.bias"]}
    params = {
        "encoder": {**mae.params["encoder"], "norm": norm},
        "head": {"kernel": np.eye(32), "bias": np.zeros(32)},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, mae.dtype), params)
    mae.close(jax.jit(Classifier(MAE_CONFIG, 32).apply)({"params": params}, patches), "full/gap64")


@pytest.mark.slow
def test_transformers_vit_mae() -> None:
    torch, transformers = oracle("torch"), oracle("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=24, patch_size=4,
        decoder_hidden_size=16, decoder_num_hidden_layers=2, decoder_num_attention_heads=2, decoder_intermediate_size=64,
        mask_ratio=0.75, norm_pix_loss=True, layer_norm_eps=1e-6,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for table, width in (
            (theirs.vit.embeddings.position_embeddings, 32),
            (theirs.decoder.decoder_pos_embed, 16),
        ):
            own = np.pad(sincos_2d((6, 6), width), ((1, 0), (0, 0)))  # some versions leave theirs at 0
            table.copy_(torch.from_numpy(own)[None])
    image = np.random.default_rng(0).normal(size=(3, 3, 24, 24)).astype(np.float32)
    noise = np.random.default_rng(1).random((3, 36)).astype(np.float32)
    out = theirs(pixel_values=torch.from_numpy(image), noise=torch.from_numpy(noise))

    state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    renames = {
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj", "vit.embeddings.cls_token": "cls_token",
        "vit.layers.": "blocks.", "vit.layernorm.": "norm.", "decoder.decoder_layers.": "decoder_blocks.",
        "decoder.mask_token": "mask_token", "decoder.decoder_": "decoder_", "layernorm_before": "norm1",
        "layernorm_after": "norm2", "attention.o_proj": "attn.proj",
    }  # fmt: skip
    renamed: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if "k_proj" in name or "v_proj" in name or "pos" in name:
            continue
        if "q_proj" in name:
            value = np.concatenate([state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
        ours_name = name.replace("attention.q_proj", "attn.qkv")
        for theirs_part, our_part in renames.items():
            ours_name = ours_name.replace(theirs_part, our_part)
        renamed[ours_name] = value
    options = {
        "model.image_size": 24, "model.patch": 4, "model.width": 32, "model.depth": 2, "model.heads": 4,
        "method.norm_pix": True, "method.decoder_width": 16, "method.decoder_depth": 2, "method.decoder_heads": 2,
    }  # fmt: skip
    method, params = (
        production("mae", options, noise=noise),
        jax.tree.map(jnp.asarray, split_heads(from_mae(renamed))),
    )
    fills(method, params)
    ran = run(method, params, jnp.asarray(image.transpose(0, 2, 3, 1)))
    pred = np.take_along_axis(out.logits.detach().numpy(), np.asarray(ran.view["hidden"])[..., None], axis=1)
    np.testing.assert_allclose(ran.outputs["pixels"], pred, atol=1e-4)
    assert float(ran.loss) == pytest.approx(float(out.loss.detach()), abs=1e-5)


@pytest.fixture
def simmim(precision: str) -> Case:
    return Case("simmim_public", from_simmim, precision)


@jax.jit
def reconstruction_and_features(params, image, mask) -> tuple[jax.Array, jax.Array]:
    """Every patch as predicted, [B, H, W, 3], and the encoder's patches after the final norm."""
    patches, mask = patchify(image, 4), mask.reshape(2, 64)
    everything = jnp.broadcast_to(jnp.arange(64), (2, 64))

    def feature(net: MaskedPredictor) -> jax.Array:
        hidden = jnp.where(mask[..., None], net.mask_token, net.encoder.embed(patches))
        rows = jnp.concatenate([net.encoder.cls_tokens(hidden), hidden], axis=1)
        return net.encoder.final_norm(net.encoder.apply_blocks(rows)[-1])[:, 1:]

    made = SIMMIM.apply({"params": params}, patches, mask, everything, method="masked")
    return unpatchify(made, (8, 8)), SIMMIM.apply({"params": params}, method=feature)


def test_simmim_reconstruction_and_features(simmim: Case) -> None:
    for prefix in ("alt/", ""):
        mask = jnp.asarray(simmim.f[f"{prefix}mask"].astype(bool))
        recon, feature = reconstruction_and_features(simmim.params, simmim.image, mask)
        simmim.close(recon.transpose(0, 3, 1, 2), f"{prefix}recon64")
    simmim.close(recon.transpose(0, 3, 1, 2), "recon", 1e-4)
    simmim.close(feature.transpose(0, 2, 1).reshape(2, 32, 8, 8), "feature64")


def test_simmim_masks_are_whole_units() -> None:
    mask = official("simmim_public")["mask"].reshape(2, 4, 2, 4, 2)
    assert (mask == mask[:, :, :1, :, :1]).all() and (mask[:, :, 0, :, 0].sum(axis=(1, 2)) == 10).all()
    ours = unit_mask_from_noise(jnp.asarray(np.random.default_rng(0).random(16)), (8, 8), 2, 10).reshape(
        4, 2, 4, 2
    )
    assert (ours == ours[:, :1, :, :1]).all() and int(ours.sum()) == 40


def test_tables_are_the_fixtures() -> None:
    f = official("mae_public")
    np.testing.assert_allclose(np.asarray(f["w/pos_embed"][0, 1:]), sincos_2d((4, 4), 32), atol=6e-8)
