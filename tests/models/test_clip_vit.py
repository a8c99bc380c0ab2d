"""CLIP's ViT: the options pre_norm, quick_gelu and a patch projection without bias, against transformers' CLIPVisionModel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.interop.files import fit
from mim_jax.interop.vit import encoder_from
from mim_jax.models.encoder_decoder import DecoderConfig, EncoderDecoder
from mim_jax.models.layers import quick_gelu
from mim_jax.models.vit import ViT, ViTConfig
from mim_jax.targets.pixels import patchify
from tests.oracles import oracle, shake, state_of

CLIP = ViTConfig(
    image_size=(32, 32), patch=8, width=32, depth=3, heads=4, norm_eps=1e-5, pre_norm=True, activation="quick_gelu",
    patch_bias=False,
)  # fmt: skip


def shapes_of(config: ViTConfig):
    patches = jax.ShapeDtypeStruct((1, config.num_patches, 3 * config.patch**2), jnp.float32)
    return jax.eval_shape(ViT(config).init, jax.random.key(0), patches)["params"]


@pytest.mark.slow
def test_last_hidden_state_equals_transformers() -> None:
    torch, transformers = oracle("torch"), oracle("transformers")
    theirs = shake(
        transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=32,
                patch_size=8,
            )
        )
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        out = theirs(pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2)))
    tree, facts = encoder_from(state_of(theirs))
    assert facts.config(heads=4) == CLIP and CLIP.features == 32
    params = jax.tree.map(jnp.asarray, fit(shapes_of(CLIP), tree, "CLIP"))
    patches = patchify(jnp.asarray(images), 8)
    layers, normed = jax.jit(lambda x: ViT(CLIP).apply({"params": params}, x, method="layers"))(patches)
    # Its last hidden state is not normed yet; the pooled CLS is.
    np.testing.assert_allclose(layers[-1], out.last_hidden_state.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(normed[:, 0], out.pooler_output.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_attention_row_goes_through_the_norm_too() -> None:
    random = np.random.default_rng(0)
    patches = jnp.asarray(random.standard_normal((2, CLIP.num_patches, 192), np.float32))
    params = jax.tree.map(
        lambda shape: jnp.asarray(0.3 * random.standard_normal(shape.shape, np.float32)), shapes_of(CLIP)
    )

    @jax.jit
    def row(scale: np.ndarray) -> jax.Array:
        moved = {**params, "norm_pre": {**params["norm_pre"], "scale": scale}}
        return ViT(CLIP).apply({"params": moved}, patches, method="attention_row")

    plain, moved = row(np.ones(32, np.float32)), row(np.linspace(0.0, 2.0, 32, dtype=np.float32))
    np.testing.assert_allclose(plain.sum(-1), 1.0, atol=1e-5)
    assert np.abs(np.asarray(plain - moved)).max() > 1e-4


def test_quick_gelu() -> None:
    x = np.linspace(-5, 5, 11)
    np.testing.assert_allclose(quick_gelu(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), atol=1e-6)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.activation is gelu or quick_gelu, not 'relu'"):
        shapes_of(dataclasses.replace(CLIP, activation="relu"))


def test_a_decoder_takes_no_norm_of_its_encoder() -> None:
    patches = jax.ShapeDtypeStruct((1, CLIP.num_patches, 192), jnp.float32)
    network = EncoderDecoder(CLIP, DecoderConfig(16, 1, 2))
    shapes = jax.eval_shape(network.init, jax.random.key(0), patches)["params"]
    assert "norm_pre" in shapes["encoder"] and "norm_pre" not in shapes["decoder"]


def test_the_defaults_add_no_parameters() -> None:
    plain = shapes_of(ViTConfig(image_size=(32, 32), patch=8, width=32, depth=1, heads=4))
    assert set(plain) == {"pos_embed", "patch_embed", "cls_token", "block_00", "norm"}
    assert set(plain["patch_embed"]) == {"kernel", "bias"}
