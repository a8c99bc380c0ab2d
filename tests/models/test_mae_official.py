"""Every number of the official MAE and SimMIM fixtures, in float64 and float32, and transformers' ViTMAE as a second oracle."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.corruptions.masking import split_by_noise, unit_mask_from_noise
from mim_jax.interop.official import from_mae, from_simmim
from mim_jax.models.classifier import Classifier
from mim_jax.models.encoder_decoder import DecoderConfig, EncoderDecoder
from mim_jax.models.masked_predictor import MaskedPredictor, take_rows
from mim_jax.models.positions import sincos_2d
from mim_jax.models.vit import ViTConfig
from mim_jax.targets.pixels import normalise_patches, patchify, unpatchify
from tests.conftest import official
from tests.oracles import oracle

# The fixture's own tables are fed in as learned positions (see its README).
MAE_CONFIG = ViTConfig(image_size=(32, 32), patch=8, width=32, depth=2, heads=4)
MAE = EncoderDecoder(MAE_CONFIG, DecoderConfig(24, 1, 3))
SIMMIM_CONFIG = ViTConfig(
    image_size=(32, 32), patch=4, width=32, depth=2, heads=4, positions="none", relative_bias="shared",
    qkv_bias="qv", layer_scale=0.1,
)  # fmt: skip
SIMMIM = MaskedPredictor(SIMMIM_CONFIG, 48)
TOLERANCES = {"float64": (1e-9, 1e-9, 1e-8), "float32": (1e-4, 1e-5, 1e-3)}


@pytest.fixture(params=["float64", "float32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        yield request.param


class Case:
    """A fixture in our layout and in one precision."""

    def __init__(self, name: str, convert, precision: str) -> None:
        self.f, self.convert, self.dtype = official(name), convert, np.dtype(precision)
        self.values, self.losses, self.gradients = TOLERANCES[precision]
        self.params = self.tree("w/", self.dtype)
        self.image = jnp.asarray(self.f["image"].transpose(0, 2, 3, 1).astype(self.dtype))

    def tree(self, prefix: str, dtype) -> dict:
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        flat = {key[len(prefix) :]: self.f[key] for key in self.f.files if key.startswith(prefix)}
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), self.convert(flat))

    def close(self, actual, key: str, tolerance: float | None = None) -> None:
        np.testing.assert_allclose(actual, self.f[key], rtol=0, atol=tolerance or self.values, err_msg=key)

    def same_gradients(self, ours, theirs) -> None:
        """Leaf by leaf for the leaves that the fixture has, relative to each tensor's largest entry."""
        expected = jax.tree_util.tree_leaves_with_path(theirs)
        flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(ours)}
        for path, leaf in expected:
            name = jax.tree_util.keystr(path)
            error = np.abs(np.asarray(flat[name]) - np.asarray(leaf)).max() / np.abs(np.asarray(leaf)).max()
            assert error < self.gradients, (name, error)


@pytest.fixture
def mae(precision: str) -> Case:
    return Case("mae_public", from_mae, precision)


def mae_loss(params, image, visible, hidden, norm: str, stop: bool = False):
    patches = patchify(image, 8)
    target = take_rows(jax.lax.stop_gradient(patches) if stop else patches, hidden)
    pred = MAE.apply({"params": params}, patches, visible, hidden, method="predict_hidden")
    return jnp.mean(jnp.square(pred - normalise_patches(target, norm)))


def raster(case: Case, visible, hidden) -> jax.Array:
    pred = MAE.apply({"params": case.params}, patchify(case.image, 8), visible, hidden, method="predict_all")
    return take_rows(pred, jnp.argsort(jnp.concatenate([visible, hidden], axis=1), axis=1))


def test_mae_masks(mae: Case) -> None:
    for prefix, kept in (("", 4), ("alt/", 8)):
        visible, hidden = split_by_noise(jnp.asarray(mae.f["noise"]), kept)
        np.testing.assert_array_equal(visible, mae.f[f"{prefix}ids_keep"])
        restore = np.argsort(np.concatenate([visible, hidden], axis=1), axis=1)
        np.testing.assert_array_equal(restore, mae.f[f"{prefix}ids_restore"])
        mask = np.ones((2, 16), np.int8)
        np.put_along_axis(mask, np.asarray(visible), 0, axis=1)
        np.testing.assert_array_equal(mask, mae.f[f"{prefix}mask"])


def test_mae_latents_predictions_and_losses(mae: Case) -> None:
    for prefix, kept in (("", 4), ("alt/", 8)):
        visible, hidden = split_by_noise(jnp.asarray(mae.f["noise"]), kept)
        latent = MAE.apply({"params": mae.params}, patchify(mae.image, 8), visible, method="encode")
        mae.close(latent, f"{prefix}latent64")
        mae.close(raster(mae, visible, hidden), f"{prefix}pred64")
        for norm, key in (("none", "loss64"), ("joint", "loss_norm_pix64")):
            mae.close(mae_loss(mae.params, mae.image, visible, hidden, norm), prefix + key, mae.losses)
    visible, hidden = split_by_noise(jnp.asarray(mae.f["noise"]), 4)
    latent = MAE.apply({"params": mae.params}, patchify(mae.image, 8), visible, method="encode")
    mae.close(latent, "latent", 1e-4)  # the official float32 run
    mae.close(raster(mae, visible, hidden), "pred", 1e-4)
    mae.close(mae_loss(mae.params, mae.image, visible, hidden, "none"), "loss", 1e-5)
    mae.close(mae_loss(mae.params, mae.image, visible, hidden, "joint"), "loss_norm_pix", 1e-5)
    mae.close(normalise_patches(patchify(mae.image, 8), "joint"), "target_norm_pix64")


def test_mae_gradients(mae: Case) -> None:
    visible, hidden = split_by_noise(jnp.asarray(mae.f["noise"]), 4)
    derive = jax.jit(jax.grad(mae_loss, argnums=(0, 1)), static_argnums=(4, 5))
    params, image = derive(mae.params, mae.image, visible, hidden, "none", False)
    mae.same_gradients(params, mae.tree("grad64/", np.float64))
    channels_last = {
        key: mae.f[key].transpose(0, 2, 3, 1)
        for key in mae.f.files
        if key.startswith("grad_") and "image" in key
    }
    mae.same_gradients({"x": image}, {"x": channels_last["grad_image64"]})
    _, stopped = derive(mae.params, mae.image, visible, hidden, "none", True)
    mae.same_gradients({"x": stopped}, {"x": channels_last["grad_image_stopped64"]})
    params, image = derive(mae.params, mae.image, visible, hidden, "joint", False)
    mae.same_gradients(params, mae.tree("grad_norm_pix64/", np.float64))
    mae.same_gradients({"x": image}, {"x": channels_last["grad_norm_pix_image64"]})


def test_mae_whole_image_features(mae: Case) -> None:
    patches = patchify(mae.image, 8)

    def features(net):
        return net.encoder.layers(patches)

    layers, final = MAE.apply({"params": mae.params}, method=features)
    mae.close(final[:, 0], "full/cls64")
    norm = {"scale": mae.f["ft/fc_norm.weight"], "bias": mae.f["ft/fc_norm.bias"]}
    params = {
        "encoder": {**mae.params["encoder"], "norm": norm},
        "head": {"kernel": np.eye(32), "bias": np.zeros(32)},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, mae.dtype), params)
    mae.close(Classifier(MAE_CONFIG, 32).apply({"params": params}, patches), "full/gap64")
    assert layers[-1].shape == final.shape


def test_mae_with_its_own_tables(mae: Case) -> None:
    config = ViTConfig(**{**MAE_CONFIG.__dict__, "positions": "sincos_2d"})
    own = EncoderDecoder(config, DecoderConfig(24, 1, 3))
    params = {
        k: {n: v for n, v in tree.items() if n != "pos_embed"} if isinstance(tree, dict) else tree
        for k, tree in mae.params.items()
    }
    shapes = jax.eval_shape(own.init, jax.random.key(0), patchify(mae.image, 8))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, shapes)
    visible, hidden = split_by_noise(jnp.asarray(mae.f["noise"]), 4)
    pred = own.apply({"params": params}, patchify(mae.image, 8), visible, hidden, method="predict_hidden")
    np.testing.assert_allclose(pred, take_rows(jnp.asarray(mae.f["pred64"]), hidden), atol=1e-5)


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
    ours = EncoderDecoder(
        ViTConfig(image_size=(24, 24), patch=4, width=32, depth=2, heads=4, positions="sincos_2d"),
        DecoderConfig(16, 2, 2),
    )
    params = jax.tree.map(jnp.asarray, from_mae(renamed))
    patches = patchify(jnp.asarray(image.transpose(0, 2, 3, 1)), 4)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), patches)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, shapes), jax.tree.structure(
        params
    )
    visible, hidden = split_by_noise(jnp.asarray(noise), 9)
    pred = ours.apply({"params": params}, patches, visible, hidden, method="predict_all")
    pred = take_rows(pred, jnp.argsort(jnp.concatenate([visible, hidden], axis=1), axis=1))
    np.testing.assert_allclose(pred, out.logits.detach().numpy(), atol=1e-4)
    error = jnp.square(
        take_rows(pred, hidden) - normalise_patches(take_rows(patches, hidden), "joint")
    ).mean()
    assert float(error) == pytest.approx(float(out.loss.detach()), abs=1e-5)


@pytest.fixture
def simmim(precision: str) -> Case:
    return Case("simmim_public", from_simmim, precision)


def reconstruction(case: Case, params, image, mask) -> jax.Array:
    everything = jnp.broadcast_to(jnp.arange(64), (2, 64))
    patches = SIMMIM.apply({"params": params}, patchify(image, 4), mask, everything, method="masked")
    return unpatchify(patches, (8, 8))


def simmim_loss(case: Case, params, image, mask, stop: bool = False) -> jax.Array:
    """The official formula, its 1e-5 included (ours leaves it out: 8e-9 of the loss here)."""
    pixels = jnp.repeat(jnp.repeat(mask, 4, 1), 4, 2)[..., None]
    target = jax.lax.stop_gradient(image) if stop else image
    error = jnp.abs(target - reconstruction(case, params, image, mask.reshape(2, 64)))
    return jnp.sum(error * pixels) / (jnp.sum(pixels) + 1e-5) / 3


def test_simmim(simmim: Case) -> None:
    shapes = jax.eval_shape(SIMMIM.init, jax.random.key(0), patchify(simmim.image, 4))["params"]
    assert jax.tree.map(jnp.shape, simmim.params) == jax.tree.map(lambda s: s.shape, shapes)
    for prefix in ("", "alt/"):
        mask = jnp.asarray(simmim.f[f"{prefix}mask"].astype(bool))
        recon = reconstruction(simmim, simmim.params, simmim.image, mask.reshape(2, 64))
        simmim.close(recon.transpose(0, 3, 1, 2), f"{prefix}recon64")
        simmim.close(simmim_loss(simmim, simmim.params, simmim.image, mask), f"{prefix}loss64", simmim.losses)
    mask = jnp.asarray(simmim.f["mask"].astype(bool))
    recon = reconstruction(simmim, simmim.params, simmim.image, mask.reshape(2, 64))
    simmim.close(recon.transpose(0, 3, 1, 2), "recon", 1e-4)
    simmim.close(simmim_loss(simmim, simmim.params, simmim.image, mask), "loss", 1e-5)

    def feature(net):
        patches = net.encoder.embed(patchify(simmim.image, 4))
        hidden = jnp.where(mask.reshape(2, 64)[..., None], net.mask_token, patches)
        rows = jnp.concatenate([net.encoder.cls_row(hidden), hidden], axis=1)
        return net.encoder.final_norm(net.encoder.run(rows)[-1])[:, 1:]

    out = SIMMIM.apply({"params": simmim.params}, method=feature)
    simmim.close(out.transpose(0, 2, 1).reshape(2, 32, 8, 8), "feature64")


def test_simmim_gradients(simmim: Case) -> None:
    mask = jnp.asarray(simmim.f["mask"].astype(bool))
    derive = jax.jit(
        jax.grad(lambda p, x, stop: simmim_loss(simmim, p, x, mask, stop), argnums=(0, 1)), static_argnums=2
    )
    params, image = derive(simmim.params, simmim.image, False)
    simmim.same_gradients(params, simmim.tree("grad64/", np.float64))
    simmim.same_gradients({"x": image}, {"x": simmim.f["grad_image64"].transpose(0, 2, 3, 1)})
    _, stopped = derive(simmim.params, simmim.image, True)
    simmim.same_gradients({"x": stopped}, {"x": simmim.f["grad_image_stopped64"].transpose(0, 2, 3, 1)})


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
