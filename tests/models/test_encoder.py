"""Any size that the patch divides: bicubic resizing against torch and timm, networks against transformers', feature maps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import drawn

from mim_jax.interop.swin import from_swin
from mim_jax.interop.vit import encoder_from
from mim_jax.models.encoder import EncoderConfig
from mim_jax.models.positions import bicubic_weights, resize_positions, resize_relative_table
from mim_jax.models.swin import Swin, SwinConfig
from mim_jax.models.vit import ViT, ViTConfig
from mim_jax.models.windows import log_offsets
from mim_jax.targets.pixels import patchify
from tests.official import split_heads
from tests.oracles import oracle, shake, state_of

VIT = ViTConfig((16, 24), 4, 32, 3, 2, relative_bias="per_block", layer_scale=0.5)
SWIN = SwinConfig((16, 16), 2, 16, (1, 2), (2, 4), (6, 6))


def parameters(config: EncoderConfig) -> Any:
    """Of an encoder, all random."""
    return drawn(config.module, jnp.zeros((1, config.num_patches, 3 * config.patch**2)))


def pictures(height: int, width: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, height, width, 3))


@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (7, 9)), ((14, 14), (5, 14)), ((5, 3), (10, 1)), ((1, 2), (4, 4))]
)
def test_resizing_is_torchs_bicubic(old: tuple[int, int], new: tuple[int, int]) -> None:
    torch = oracle("torch")
    image = np.random.default_rng(0).normal(size=(*old, 6))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1)[None]), size=new, mode="bicubic", align_corners=False
    )
    ours = np.einsum(
        "ia,jb,abc->cij", bicubic_weights(old[0], new[0]), bicubic_weights(old[1], new[1]), image
    )
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-12)


def test_tables_are_resized_as_timm_does() -> None:
    oracle("timm")
    from timm.layers import resample_abs_pos_embed
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

    torch, rng = oracle("torch"), np.random.default_rng(0)
    positions = rng.normal(size=(1, 1 + 12, 8)).astype(np.float32)
    theirs = resample_abs_pos_embed(torch.from_numpy(positions), [6, 5], [4, 3], 1, antialias=False).numpy()
    np.testing.assert_allclose(resize_positions(positions, (4, 3), (6, 5)), theirs, atol=1e-5)
    np.testing.assert_array_equal(resize_positions(positions, (4, 3), (4, 3)), positions)
    table = rng.normal(size=(7 * 7 + 3, 2)).astype(np.float32)
    theirs = resize_rel_pos_bias_table_simple(torch.from_numpy(table), (6, 5), (11 * 9 + 3, 2)).numpy()
    np.testing.assert_allclose(resize_relative_table(table, (4, 4), (6, 5)), theirs, atol=1e-5)
    np.testing.assert_allclose(resize_relative_table(table[:49], (4, 4), (6, 5)), theirs[:99], atol=1e-5)
    with pytest.raises(ValueError, match="13 positions does not belong"):
        resize_positions(positions, (4, 4), (5, 5))
    with pytest.raises(ValueError, match="52 relative positions does not belong"):
        resize_relative_table(table, (5, 5), (6, 6))


@pytest.mark.slow
def test_a_vit_at_another_size_is_transformers() -> None:
    transformers, torch = oracle("transformers"), oracle("torch")
    network = shake(
        transformers.ViTModel(
            transformers.ViTConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4
            ),
            add_pooling_layer=False,
        )
    )  # fmt: skip
    tree, facts = encoder_from(state_of(network))
    images = pictures(20, 12)
    with torch.no_grad():
        theirs = network(
            torch.from_numpy(np.array(images.transpose(0, 3, 1, 2))), interpolate_pos_encoding=True
        )
    config = facts.config(4)
    _, final = jax.jit(config.layers)(split_heads(tree), images)
    np.testing.assert_allclose(final, theirs.last_hidden_state.numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_swin_at_another_size_is_transformers() -> None:
    """Trained at 8x8 and 4x4 places, applied to 10x14 and 5x7, which are padded."""
    transformers, torch = oracle("transformers"), oracle("torch")
    network = shake(
        transformers.Swinv2Model(
            transformers.Swinv2Config(
                image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, layer_norm_eps=1e-5
            ),
            add_pooling_layer=False,
        )
    )  # fmt: skip
    config = SwinConfig((16, 16), 2, 16, (2, 2), (2, 4), (4, 4))
    images = pictures(20, 28)
    # It plans the second stage's shift at the size of training, where the map is one window.
    network.encoder.layers[1].blocks[1].shift_size = 2
    with torch.no_grad():
        theirs = network(
            torch.from_numpy(np.array(images.transpose(0, 3, 1, 2))), interpolate_pos_encoding=True
        )
    params = split_heads(from_swin(state_of(network))["encoder"])
    _, final = jax.jit(config.layers)(params, images)
    np.testing.assert_allclose(final, theirs.last_hidden_state.numpy(), atol=1e-4)


def test_position_biases_keep_the_scale_of_the_windows_they_were_trained_in() -> None:
    """A map of 4x4 is one window, whatever its window is; at twice the size the window is 6x6, and equal offsets have equal biases."""
    larger = SWIN.at_size((32, 24))
    assert [plan.window for plan in SWIN.plans] == [(6, 6), (4, 4), (4, 4)] and SWIN.reference_windows == (
        (6, 6),
        (4, 4),
    )
    assert [plan.window for plan in larger.plans] == [(6, 6), (6, 6), (6, 6)]
    assert [plan.shift for plan in larger.plans] == [(0, 0), (0, 0), (3, 0)]
    assert larger.reference_windows == SWIN.reference_windows and larger.at_size((16, 16)).plans == SWIN.plans
    offsets = log_offsets((6, 6), (4, 4)).reshape(11, 11, 2)
    np.testing.assert_allclose(offsets[2:-2, 2:-2].reshape(-1, 2), log_offsets((4, 4), (4, 4)))
    tall = SwinConfig((16, 8), 2, 16, (1, 1), (2, 4), (6, 6))
    assert tall.at_size((32, 32)).reference_windows == ((6, 4), (4, 2))


@pytest.mark.parametrize(
    "config", [VIT, SWIN, dataclasses.replace(SWIN, version=1)], ids=["vit", "swin", "swin v1"]
)
def test_parameters_are_those_of_the_network_built_for_the_other_size(config: EncoderConfig) -> None:
    params, larger = parameters(config), config.at_size((24, 32))
    resized = config.resize(params, larger)
    assert jax.tree.map(jnp.shape, resized) == jax.tree.map(jnp.shape, parameters(larger))
    same = config.resize(params, config.at_size(config.image_size))
    jax.tree.map(np.testing.assert_array_equal, same, params)
    with pytest.raises(ValueError, match="images of 24x30 px are not multiples of the patch of 4 px"):
        VIT.at_size((24, 30))
    with pytest.raises(ValueError, match="images of 0x8 px"):
        config.at_size((0, 8))


@pytest.mark.slow
def test_feature_maps_of_a_vit() -> None:
    params, images = parameters(VIT), pictures(16, 24)
    layers, final = jax.jit(VIT.layers)(params, images)
    maps = jax.jit(lambda params, images: VIT.feature_maps(params, images, (2, 0, -1)))(params, images)
    assert [(made.stride, made.features.shape) for made in maps] == [(4, (2, 4, 6, 32))] * 3
    np.testing.assert_allclose(maps[0].features.reshape(2, 24, 32), layers[2][:, 1:], atol=1e-5)
    np.testing.assert_allclose(maps[1].features[1, 3, 2], layers[0][1, 1 + 3 * 6 + 2], atol=1e-5)
    np.testing.assert_array_equal(maps[2].features, maps[0].features)
    patches = patchify(images, 4)
    np.testing.assert_allclose(final, ViT(VIT).apply({"params": params}, patches), atol=1e-5)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(VIT.feature_maps(params, pictures(24, 16), (2,))[0].features))

    gradient = jax.jit(jax.grad(loss))(params)  # of the tables that are stored, through their resizing
    assert (
        gradient["pos_embed"].shape == (1, 25, 32) and (np.abs(gradient["pos_embed"]).sum(axis=-1) > 0).all()
    )
    assert np.abs(gradient["block_02"]["relative_position_bias"]["table"]).max() > 0


@pytest.mark.slow
def test_feature_maps_of_a_swin() -> None:
    params, images = parameters(SWIN), pictures(20, 28)
    apply = jax.jit(lambda params, images: SWIN.feature_maps(params, images, (0, 1)))
    assert [(made.stride, made.features.shape) for made in apply(params, images)] == [
        (2, (2, 10, 14, 16)),
        (4, (2, 5, 7, 32)),
    ]
    small = pictures(16, 16)
    layers = Swin(SWIN).apply({"params": params}, patchify(small, 2), method="layers")[0]
    maps = apply(params, small)
    np.testing.assert_allclose(maps[0].features.reshape(2, 64, 16), layers[0], atol=1e-5)
    np.testing.assert_allclose(maps[1].features.reshape(2, 16, 32), layers[2], atol=1e-5)


def test_a_module_draws_nothing_by_itself() -> None:
    with pytest.raises(TypeError, match=r"draw them by method\.init_params"):
        ViT(VIT).init(jax.random.key(0), jnp.zeros((1, 24, 48)))
