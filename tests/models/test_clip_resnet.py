"""CLIP's ModifiedResNet against timm's: small, RN50, and (MIM_JAX_HEAVY=1) RN50x64 at 448 px."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import fit
from mim_jax.interop.teachers import clip_resnet_from
from mim_jax.models.clip_resnet import CLIP_RESNETS, ClipResNet, ClipResNetConfig
from tests.oracles import oracle, state_of

TINY = ClipResNetConfig((2, 3, 2, 2), 8, (64, 96))


def tiny_timm():
    """timm's network with TINY's blocks and width."""
    oracle("timm")
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    w = TINY.width
    blocks = tuple(
        ByoBlockCfg(type="bottle", d=depth, c=4 * w * 2**stage, s=1 if stage == 0 else 2, br=0.25)
        for stage, depth in enumerate(TINY.layers)
    )
    return ByobNet(
        ByoModelCfg(
            blocks=blocks,
            stem_chs=(w // 2, w // 2, w),
            stem_type="",
            stem_pool="avg2",
            downsample="avg",
            aa_layer="avg",
            head_type="classifier",
        ),
        num_classes=0,
    )


def randomised(network):
    """Random weights that keep activations of order one through any depth, and random BatchNorm statistics."""
    torch = oracle("torch")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 4:  # He: the variance stays
                parameter.normal_(0.0, (2.0 / parameter[0].numel()) ** 0.5)
            elif name.endswith("bn.weight"):
                # The branch's last norm is small, as in a trained network: 64 additions stay of order one.
                parameter.uniform_(0.02, 0.12) if "conv3_1x1" in name else parameter.uniform_(0.5, 1.5)
            elif name.endswith("bn.bias"):
                parameter.normal_(0.0, 0.2)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return network.eval()


def openai_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's names as OpenAI's file has them."""
    renames = (
        (r"^stem\.conv(\d)\.(conv|bn)\.", r"visual.\2\1."),
        (r"^stages\.(\d)\.(\d+)\.conv(\d)_\w+\.(conv|bn)\.", r"visual.stage\1.\2.\4\3."),
        (r"^stages\.(\d)\.(\d+)\.shortcut\.conv\.conv\.", r"visual.stage\1.\2.downsample.0."),
        (r"^stages\.(\d)\.(\d+)\.shortcut\.conv\.bn\.", r"visual.stage\1.\2.downsample.1."),
    )
    out = {}
    for name, value in state.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        out[re.sub(r"stage(\d)", lambda match: f"layer{int(match[1]) + 1}", name)] = value
    others = {"visual.attnpool.q_proj.weight": np.zeros((2, 2)), "text_projection": np.zeros((2, 2))}
    return out | others


def shapes_of(config: ClipResNetConfig):
    image = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    return jax.eval_shape(ClipResNet(config).init, jax.random.key(0), image)["params"]


def maps(network, config: ClipResNetConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    """timm's map and ours of the same weights and random images."""
    torch = oracle("torch")
    images = np.random.default_rng(0).normal(size=(count, *config.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = network.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    params = fit(shapes_of(config), clip_resnet_from(state_of(network)), "timm's network")
    ours = jax.jit(ClipResNet(config).apply)({"params": params}, images)
    return theirs.transpose(0, 2, 3, 1), np.asarray(ours)


@pytest.mark.slow
def test_tiny_network_equals_timms_in_both_namings() -> None:
    network = randomised(tiny_timm())
    theirs, ours = maps(network, TINY, 2)
    assert ours.shape == (2, *TINY.grid, TINY.features) == (2, 2, 3, 256)
    assert 0.1 < np.abs(theirs).mean() < 10
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    timm_tree = clip_resnet_from(state_of(network))
    openai_tree = clip_resnet_from(openai_names(state_of(network)))
    jax.tree.map(np.testing.assert_array_equal, timm_tree, openai_tree)


def test_odd_sizes_are_rounded_down() -> None:
    """As OpenAI's code does (timm's does not run then)."""
    config = dataclasses.replace(TINY, image_size=(71, 101))
    image = jax.ShapeDtypeStruct((1, 71, 101, 3), jnp.float32)
    out = jax.eval_shape(ClipResNet(config).apply, {"params": shapes_of(config)}, image)
    assert out.shape == (1, *config.grid, config.features) and config.grid == (2, 3)


@pytest.mark.slow
def test_rn50_equals_timms() -> None:
    network = randomised(oracle("timm").create_model("resnet50_clip", pretrained=False))
    config = dataclasses.replace(CLIP_RESNETS["RN50"], image_size=(64, 64))
    theirs, ours = maps(network, config, 1)
    assert 0.1 < np.abs(theirs).mean() < 10
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.skipif(
    os.environ.get("MIM_JAX_HEAVY") != "1", reason="a minute and 6 GB: MIM_JAX_HEAVY=1 runs it"
)  # fmt: skip
def test_rn50x64_at_448_px_equals_timms() -> None:
    network = randomised(oracle("timm").create_model("resnet50x64_clip", pretrained=False))
    theirs, ours = maps(network, CLIP_RESNETS["RN50x64"], 1)
    error = np.abs(ours - theirs).max()
    print(
        f"RN50x64: mean {np.abs(theirs).mean():.3f}, largest {theirs.max():.2f}, largest difference {error:.1e}"
    )
    assert ours.shape == (1, 14, 14, 4096) and 0.1 < np.abs(theirs).mean() < 10
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CLIP_RESNETS)
def test_presets(name: str) -> None:
    """Depth is in the name: 3 convolutions a bottleneck, stem and head (RN50x4 and up have no such name)."""
    config = CLIP_RESNETS[name]
    assert config.grid == (config.image_size[0] // 32,) * 2
    if name in ("RN50", "RN101"):
        assert 3 * sum(config.layers) + 2 == int(name[2:])
    assert (
        config.features
        == {"RN50": 2048, "RN101": 2048, "RN50x4": 2560, "RN50x16": 3072, "RN50x64": 4096}[name]
    )


def test_half_precision_computes_in_half() -> None:
    config = dataclasses.replace(TINY, dtype=jnp.float16)
    shapes = shapes_of(config)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    image = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float16)
    out = jax.eval_shape(ClipResNet(config).apply, {"params": shapes}, image)
    assert out.dtype == jnp.float16


def test_other_weights_are_refused_in_one_sentence() -> None:
    with pytest.raises(WeightsError, match="a CLIP with a ViT, not a CLIP ResNet"):
        clip_resnet_from(
            {"visual.conv1.weight": np.zeros((8, 3, 4, 4)), "visual.transformer.resblocks.0.x": np.zeros(1)}
        )
    with pytest.raises(WeightsError, match="something else, not a CLIP ResNet"):
        clip_resnet_from({"weight": np.zeros(3)})
