"""Swin against transformers, timm and SimMIM's own code: same weights, same outputs, same gradients, in float64.

Norms start at scale 0 in these libraries, so every parameter is drawn afresh; else nothing of a block would be tested.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.interop.swin import from_swin
from mim_jax.models.masked_predictor import SwinPredictor
from mim_jax.models.swin import Swin, SwinConfig
from mim_jax.models.windows import log_offsets
from mim_jax.targets.pixels import patchify, unpatchify
from tests.conftest import official
from tests.official import split_heads
from tests.oracles import oracle

VALUES, GRADIENTS = 1e-8, 1e-7  # absolute; relative to a tensor's largest entry
# Compiled without LLVM's optimisations: these programs run once.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    module = oracle("torch")
    threads = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(threads)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def randomise(torch: Any, network: Any, scales: tuple[float, float]) -> None:
    """Every parameter drawn afresh; logit scales uniform in `scales`. Coordinate tables in full float64."""
    generator = torch.Generator().manual_seed(0)
    network.double().eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if name.endswith("logit_scale"):
                value.copy_(torch.linspace(*scales, value.numel()).reshape(value.shape))
            elif value.ndim == 1:
                value.copy_(float(name.endswith("weight")) + 0.4 * noise)
            else:
                value.copy_(noise * (0.5 if "mlp.2" in name else 1.0) / math.sqrt(max(value[0].numel(), 4)))
        for module in network.modules():
            if hasattr(module, "relative_coords_table"):
                own = log_offsets(*known_windows(module))
                table = module.relative_coords_table
                np.testing.assert_allclose(
                    table.numpy().reshape(own.shape), own, atol=1e-6
                )  # theirs is float32
                table.copy_(torch.from_numpy(own).reshape(table.shape))


def known_windows(module: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    window = tuple(module.window_size)
    reference = tuple(module.pretrained_window_size)
    return window, (reference if reference[0] else window)


def converted(state: Mapping[str, np.ndarray]) -> Any:
    """A state dict (or one of gradients) as a tree of our networks."""
    return split_heads(from_swin(state))


def arrays(network: Any, gradients: bool = False) -> dict[str, np.ndarray]:
    if gradients:
        return {name: value.grad.numpy() for name, value in network.named_parameters()}
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


def same_shapes(params: Any, network: Any, patches: jax.Array) -> None:
    shapes = jax.eval_shape(network.init, jax.random.key(0), patches)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def same_gradients(ours: Any, theirs: Any, tolerance: float = GRADIENTS) -> None:
    def compare(path: Any, own: jax.Array, other: np.ndarray) -> None:
        largest = np.abs(other).max()
        error = np.abs(np.asarray(own) - other).max()
        assert error <= tolerance * largest, (jax.tree_util.keystr(path), error, largest)

    jax.tree_util.tree_map_with_path(compare, ours, theirs)


def image_of(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, *size))


def probe(shape: tuple[int, ...]) -> np.ndarray:
    """What outputs are multiplied by before they are summed up for a gradient."""
    return np.random.default_rng(1).normal(size=shape)


def layers_and_gradients(config: SwinConfig, params: Any, image: np.ndarray) -> tuple[list[jax.Array], Any]:
    """The map of every stage and the normed tokens; the gradient of those, probed."""
    patches = patchify(jnp.asarray(image.transpose(0, 2, 3, 1)), config.patch)
    same_shapes(params, Swin(config), patches)

    def objective(params: Any) -> tuple[jax.Array, list[jax.Array]]:
        def both(net: Swin) -> tuple[list[jax.Array], jax.Array]:
            layers, final = net.layers(patches)
            return layers, final

        layers, final = Swin(config).apply({"params": params}, method=both)
        return jnp.sum(final * probe(final.shape)), [*layers, final]

    (_, outputs), gradients = jit(jax.value_and_grad(objective, has_aux=True))(params)
    return outputs, gradients


def transformers_config(**options: Any) -> Any:
    transformers = oracle("transformers")
    return transformers, transformers.Swinv2Config(
        patch_size=2, embed_dim=16, num_heads=[2, 4], window_size=4, encoder_stride=4, layer_norm_eps=1e-5,
        **{"depths": [2, 2], **options},
    )  # fmt: skip


@pytest.mark.slow
def test_transformers_with_padding_windows_of_another_pre_training_and_odd_maps(torch: Any) -> None:
    """Maps of 10x14 and 5x7 in windows of 4: all blocks pad, every second one shifts."""
    transformers, their_config = transformers_config(image_size=(20, 28), pretrained_window_sizes=[3, 6])
    network = transformers.Swinv2Model(their_config, add_pooling_layer=False)
    randomise(torch, network, (0.5, 2.5))
    image = image_of((20, 28))
    out = network(torch.from_numpy(image), output_hidden_states=True)
    (out.last_hidden_state * torch.from_numpy(probe(tuple(out.last_hidden_state.shape)))).sum().backward()

    config = SwinConfig((20, 28), 2, 16, (2, 2), (2, 4), (4, 4), pretrained_windows=(3, 6))
    outputs, gradients = layers_and_gradients(config, converted(arrays(network))["encoder"], image)
    # hidden_states: after the embedding, after the first merging, after the last block
    np.testing.assert_allclose(outputs[3], out.hidden_states[2].detach().numpy(), rtol=0, atol=VALUES)
    np.testing.assert_allclose(outputs[-1], out.last_hidden_state.detach().numpy(), rtol=0, atol=VALUES)
    same_gradients(gradients, converted(arrays(network, gradients=True))["encoder"])


@pytest.mark.slow
def test_transformers_without_shift_in_some_stages_and_with_an_odd_merging(torch: Any) -> None:
    """The dense tasks' use_shift, by taking the shift out of their blocks; float32; a map of 9x9 merges into 5x5."""
    transformers, their_config = transformers_config(image_size=18)
    network = transformers.Swinv2Model(their_config, add_pooling_layer=False)
    randomise(torch, network, (0.5, 2.5))
    for block in network.encoder.layers[0].blocks:
        block.shift_size = 0
    # It halves 9 to 4 when it plans its windows: the second stage would not shift a map that is 5 wide.
    for block, shift in zip(network.encoder.layers[1].blocks, (0, 2), strict=True):
        block.shift_size = shift
    image = image_of((18, 18))
    expected = network(torch.from_numpy(image)).last_hidden_state.detach().numpy()

    config = SwinConfig((18, 18), 2, 16, (2, 2), (2, 4), (4, 4), use_shift=(False, True))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), converted(arrays(network))["encoder"])
    patches = patchify(jnp.asarray(image.transpose(0, 2, 3, 1), jnp.float32), 2)
    with jax.default_matmul_precision("highest"):
        ours = jit(Swin(config).apply)({"params": params}, patches)
    assert ours.dtype == jnp.float32 and config.cells == (5, 5)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_transformers_simmim(torch: Any) -> None:
    """Reconstruction, loss (the official 1e-5 included) and every gradient; a map of 8x8 in four shifted windows."""
    transformers, their_config = transformers_config(image_size=16, depths=[2, 1])
    network = transformers.Swinv2ForMaskedImageModeling(their_config)
    randomise(torch, network, (0.5, 2.5))
    image = image_of((16, 16))
    mask = np.random.default_rng(2).random((2, 64)) < 0.6
    out = network(torch.from_numpy(image), bool_masked_pos=torch.from_numpy(mask))
    out.loss.backward()

    config = SwinConfig((16, 16), 2, 16, (2, 1), (2, 4), (4, 4))
    params = converted(arrays(network))
    same_shapes(params, SwinPredictor(config), jnp.zeros((2, 64, 12)))
    (loss, (recon, _)), gradients = simmim_loss(config)(
        params, jnp.asarray(image.transpose(0, 2, 3, 1)), mask.reshape(2, 8, 8)
    )
    np.testing.assert_allclose(
        recon.transpose(0, 3, 1, 2), out.reconstruction.detach().numpy(), rtol=0, atol=VALUES
    )
    # They sum up a bool mask in float32, where the 1e-5 is lost: 1.6e-8 of the loss.
    assert float(loss) == pytest.approx(out.loss.item(), abs=1e-6)
    same_gradients(gradients[0], converted(arrays(network, gradients=True)))


def simmim_loss(config: SwinConfig) -> Any:
    """(params, image, mask) to (loss, (reconstruction, features)), and the gradients by params, input and target."""
    count = config.cells[0] * config.cells[1]

    def features(net: SwinPredictor, patches: jax.Array, mask: jax.Array) -> jax.Array:
        embedded = net.encoder.embed(patches)
        hidden = jnp.where(mask.reshape(len(mask), -1, 1) == 1, net.mask_token, embedded)
        return net.encoder.final_norm(net.encoder.apply_blocks(hidden)[-1])

    def loss(params: Any, image: jax.Array, target: jax.Array, mask: jax.Array) -> Any:
        everything = jnp.broadcast_to(jnp.arange(count), (len(image), count))
        cells = SwinPredictor(config).apply(
            {"params": params}, patchify(image, config.patch), mask.reshape(len(mask), -1).astype(bool), everything,
            method="masked",
        )  # fmt: skip
        recon = unpatchify(cells, config.cells)
        feature = SwinPredictor(config).apply(
            {"params": params}, patchify(image, config.patch), mask, method=features
        )
        pixels = jnp.repeat(jnp.repeat(mask, config.patch, 1), config.patch, 2)[..., None]
        error = jnp.sum(jnp.abs(target - recon) * pixels)
        return error / (jnp.sum(pixels) + 1e-5) / 3, (recon, feature)

    derive = jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    return lambda params, image, mask: derive(params, image, image, jnp.asarray(mask, image.dtype))


@pytest.mark.slow
def test_timm_with_windows_of_each_axis_and_stage_and_scales_beyond_the_clamp(torch: Any) -> None:
    """Maps of 4x16 (windows of 4: rows do not shift) and 2x8 (windows of 2, pre-trained at 6); timm pads otherwise.

    Logit scales on both sides of ln 100.
    """
    swin = oracle("timm.models.swin_transformer_v2")
    network = swin.SwinTransformerV2(
        img_size=(16, 64), patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=((4, 4), (2, 2)),
        pretrained_window_sizes=(0, 6), num_classes=5, drop_path_rate=0.0,
    )  # fmt: skip
    randomise(torch, network, (2.0, 5.0))
    image = image_of((16, 64))
    maps = network.forward_features(torch.from_numpy(image))
    final = maps.reshape(2, -1, 32)
    (final * torch.from_numpy(probe(tuple(final.shape)))).sum().backward()

    config = SwinConfig((16, 64), 4, 16, (2, 2), (2, 4), (4, 2), pretrained_windows=(0, 6))
    assert [plan.shift for plan in config.plans] == [(0, 0), (0, 2), (0, 0), (0, 1)]
    weights = converted(arrays(network))
    np.testing.assert_array_equal(weights["head"]["kernel"], network.head.fc.weight.detach().numpy().T)
    outputs, gradients = layers_and_gradients(config, weights["encoder"], image)
    np.testing.assert_allclose(outputs[-1], final.detach().numpy(), rtol=0, atol=VALUES)
    grads = {name: value.grad for name, value in network.named_parameters() if not name.startswith("head.")}
    expected = converted({name: value.numpy() for name, value in grads.items()})["encoder"]
    scale = np.asarray(gradients["block_00"]["attn"]["logit_scale"]).ravel()
    assert scale[0] != 0 and scale[1] == 0  # beyond the clamp
    same_gradients(gradients, expected)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_simmims_own_swin(precision: str) -> None:
    """Version 1: every number of the fixture."""
    f = official("simmim_swin_public")
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        values, losses, relative = (1e-9, 1e-9, 1e-8) if precision == "float64" else (1e-4, 1e-5, 1e-3)
        given = json.loads(str(f["config"]))
        config = SwinConfig(
            (given["img_size"],) * 2, given["patch_size"], given["embed_dim"], tuple(given["depths"]),
            tuple(given["num_heads"]), (given["window_size"],) * 2, norm_eps=given["ln_eps"], version=1,
        )  # fmt: skip
        of = lambda prefix: {key[len(prefix) :]: f[key] for key in f.files if key.startswith(prefix)}  # noqa: E731
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, precision), converted(of("w/")))
        image = jnp.asarray(f["image"].transpose(0, 2, 3, 1), precision)
        same_shapes(params, SwinPredictor(config), patchify(image, config.patch))
        derive = simmim_loss(config)
        for prefix in ("alt/", ""):
            (loss, (recon, feature)), gradients = derive(params, image, f[f"{prefix}mask"])
            recon = np.asarray(recon).transpose(0, 3, 1, 2)
            np.testing.assert_allclose(recon, f[f"{prefix}recon64"], rtol=0, atol=values)
            np.testing.assert_allclose(loss, f[f"{prefix}loss64"], rtol=0, atol=losses)
        np.testing.assert_allclose(recon, f["recon"], rtol=0, atol=1e-4)  # the official float32 run
        np.testing.assert_allclose(loss, f["loss"], rtol=0, atol=1e-5)
        by_params, by_input, by_target = gradients
        same_gradients(by_params, converted(of("grad64/")), relative)
        first = lambda key: f[key].transpose(0, 2, 3, 1)  # noqa: E731
        same_gradients(by_input, first("grad_image_stopped64"), relative)
        same_gradients(by_input + by_target, first("grad_image64"), relative)
        feature = np.asarray(feature).reshape(2, 8, 8, 32).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(feature, f["feature64"], rtol=0, atol=values)


def test_names_of_transformers_version_1_and_of_the_depth_code(torch: Any) -> None:
    transformers = oracle("transformers")
    their_config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    )
    network = transformers.SwinForMaskedImageModeling(their_config)
    config = SwinConfig((16, 16), 2, 16, (2, 2), (2, 4), (4, 4), version=1)
    params = converted(arrays(network))
    params["head"] = jax.eval_shape(SwinPredictor(config).init, jax.random.key(0), jnp.zeros((1, 64, 12)))[
        "params"
    ]["head"]
    same_shapes(params, SwinPredictor(config), jnp.zeros((1, 64, 12)))  # their decoder's stride is 32
    block = converted(
        {
            "backbone.layers.0.blocks.0.attn.rpe_mlp.0.bias": np.ones(512),
            "backbone.layers.0.blocks.0.attn.rpe_mlp.2.weight": np.ones((2, 512)),
            "backbone.layers.0.blocks.0.attn.relative_coords_table": np.ones(3),
            "backbone.norm3.weight": np.ones(32),
        }
    )["encoder"]
    assert block["block_00"]["attn"]["cpb_fc2"]["kernel"].shape == (512, 2) and "scale" in block["norm"]
    with pytest.raises(ValueError, match=r"cls_token is not the name of a Swin's weight"):
        converted({"cls_token": np.ones(3)})
