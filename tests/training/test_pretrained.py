"""Fine-tuning and probing of somebody else's weights: the network is theirs, and so is what it computes."""

import dataclasses

import jax
import numpy as np
import pytest

from mim_jax.config.check import ConfigError, check
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.config.schema import Config, Model
from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import write_weights
from mim_jax.interop.vit import encoder_from
from mim_jax.methods import build_method, complete_options
from mim_jax.models.positions import resize_positions
from mim_jax.models.surgery import shuffled_order
from mim_jax.models.vit import ViT
from mim_jax.training.pretrained import (
    ignored_keys,
    load_encoder,
    model_at_size,
    read_weights_file,
    with_network_of_init,
)
from tests.official import split_heads

WIDTH, PATCH, GRID = 64, 4, 4


def state(norm: bool = True) -> dict[str, np.ndarray]:
    """A ViT of two blocks as timm names it."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, GRID**2 + 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "head.weight": (7, WIDTH),
        "head.bias": (7,),
    }
    for block in (0, 1):
        for name, out, into in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"blocks.{block}.{name}.weight": (out, into), f"blocks.{block}.{name}.bias": (out,)}
        for one in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{one}.weight": (WIDTH,), f"blocks.{block}.{one}.bias": (WIDTH,)}
    if norm:
        shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    random = np.random.default_rng(0)
    return {name: 0.1 * random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def weights(tmp_path):
    write_weights(tmp_path / "vit.safetensors", state())
    return str(tmp_path / "vit.safetensors")


def inherited(file: str, **values):
    """The configuration of a file as a run has it after inheriting."""
    return with_network_of_init(check(override(load(f"configs/{file}.py"), {"data.batch_size": 8, **values})))


def started_from(weights: str, file: str, **more):
    """A method and its parameters as a run begins that starts from the weights."""
    config = inherited(file, **{"init": weights, "data.source": "digits", "method.num_classes": 4, **more})
    resolved = resolve(config, num_examples=800, num_devices=1, platform="cpu")
    completed = complete_options(resolved)
    method = build_method(completed)
    return method, load_encoder(completed, method, method.init_params(jax.random.key(0)))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["finetune", "linear_probe"])
def test_the_encoder_is_theirs(weights, file) -> None:
    method, params = started_from(weights, file)
    vit = method.net
    assert (vit.width, vit.depth, vit.heads, vit.patch, vit.image_size) == (WIDTH, 2, 1, PATCH, (16, 16))
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    patches = method.patches(images)
    tree, seen = encoder_from(state())
    run = jax.jit(lambda tree: ViT(seen.config()).apply({"params": tree}, patches, method="layers")[0][-1])
    expected = run(split_heads(tree, head_dim=WIDTH))
    made = jax.jit(lambda p: method.encode(p, images).layers[-1])(params)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    fresh = np.allclose(params["encoder"]["norm"]["scale"], 1.0)
    assert fresh == (file == "finetune")  # the norm after mean pooling is made anew


def test_heads_and_what_is_read_for_analyses(weights) -> None:
    method, _ = started_from(weights, "finetune", **{"model.heads": 4})
    assert method.net.heads == 4
    config, method, params = read_weights_file(weights)
    assert config.model.image_size == (16, 16) and method.net.width == WIDTH
    np.testing.assert_array_equal(params["encoder"]["cls_token"], state()["cls_token"])


def test_refusals(weights, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"set config\.data\.source"):
        inherited("finetune", init=weights)
    with pytest.raises(WeightsError, match="there is no file"):
        inherited("finetune", **{"init": "nowhere.safetensors", "data.source": "digits"})
    with pytest.raises(WeightsError, match="5 heads do not divide the width 64"):
        inherited("finetune", **{"init": weights, "data.source": "digits", "model.heads": 5})
    bare = tmp_path / "bare.safetensors"
    write_weights(bare, state(norm=False))
    with pytest.raises(ConfigError, match=r"encoder/norm/bias is absent there"):
        started_from(str(bare), "linear_probe")
    with pytest.raises(ConfigError, match="whole encoder: norm"):
        read_weights_file(bare)


def test_surgery_before_the_start(weights) -> None:
    """docs/papers/dark_secrets.md 2.6: which blocks are theirs, which are fresh, and where they stand."""
    tree, _ = encoder_from(state())

    def theirs(params, place: int, block: int) -> bool:
        own = params["encoder"][f"block_{place:02d}"]["mlp"]["fc1"]["kernel"]
        return bool(np.array_equal(own, tree[f"block_{block:02d}"]["mlp"]["fc1"]["kernel"]))

    _, params = started_from(weights, "linear_probe", **{"surgery.mode": "reinit", "surgery.blocks": 1})
    assert theirs(params, 0, 0) and not theirs(params, 1, 1)
    np.testing.assert_array_equal(params["encoder"]["norm"]["scale"], np.ones(WIDTH))
    method, params = started_from(weights, "finetune", **{"surgery.mode": "truncate", "surgery.blocks": 1})
    assert method.net.depth == 1 and theirs(params, 0, 0) and "block_01" not in params["encoder"]
    assert method.rules.last_layer == 2
    swapped = next(seed for seed in range(9) if shuffled_order(2, seed) == [1, 0])
    _, params = started_from(weights, "finetune", **{"surgery.mode": "shuffle", "surgery.seed": swapped})
    assert theirs(params, 0, 1) and theirs(params, 1, 0)
    for change, says in (
        ({"surgery.mode": "cut"}, "surgery.mode is 'cut'"),
        ({"surgery.mode": "truncate", "surgery.blocks": 2}, r"must lie in 0\.\.1"),
        ({"surgery.mode": "reinit", "surgery.blocks": 3}, r"n_last=3 of mode reinit must lie in 0\.\.2"),
    ):
        with pytest.raises(ConfigError, match=says):
            started_from(weights, "finetune", **change)
    with pytest.raises(ConfigError, match=r"pass --config\.init"):
        inherited("supervised", **{"surgery.mode": "shuffle"})


def test_another_image_size_resizes_the_positions(weights) -> None:
    """config.model.image_size with config.init: a bigger grid, whose table is the old one, interpolated; CLS keeps its row."""
    method, params = started_from(weights, "finetune", **{"model.image_size": 32})
    assert method.net.image_size == (32, 32) and method.net.grid == (32 // PATCH, 32 // PATCH)
    given, made = np.asarray(state()["pos_embed"]), np.asarray(params["encoder"]["pos_embed"])
    assert made.shape == (1, 1 + method.net.num_patches, WIDTH)
    np.testing.assert_allclose(made[:, 0], given[:, 0], atol=1e-6)
    old = (16 // PATCH, 16 // PATCH)
    expected = resize_positions(jax.numpy.asarray(given), old, method.net.grid)
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_a_swin_keeps_the_scale_of_its_windows_at_another_size() -> None:
    """A window of 6 was one of 4 on the last map of 4x4."""
    model = Model(variant="swinv2_mu", image_size=16, patch=2, window=6, dtype="float32", norm_eps=1e-5)
    donor = Config(model=model)
    assert model_at_size(donor, None) == model
    other = model_at_size(donor, 32)
    assert (other.image_size, other.pretrained_windows) == (32, (6, 4))
    again = model_at_size(dataclasses.replace(donor, model=other), (48, 32))
    assert again.pretrained_windows == (6, 4)
    tall = dataclasses.replace(donor, model=dataclasses.replace(model, image_size=(16, 8)))
    with pytest.raises(
        ConfigError,
        match=r"config\.model\.image_size=32: .* windows of \(\(6, 4\), \(4, 2\)\), and only squares",
    ):
        model_at_size(tall, 32)


def test_a_key_without_effect_is_said(finished_run) -> None:
    """The network is that of the run; a key that says otherwise is not silently ignored."""
    values = {"init": str(finished_run), "data.source": "init", "data.batch_size": 8, "model.image_size": 16}
    values |= {"model.depth": 3, "model.variant": "mu"}  # the variant is as it is there
    asked = check(override(load("finetune"), values))
    made = with_network_of_init(asked)
    assert made.model.image_size == 16
    assert ignored_keys(asked, made) == ["model.depth=2, that of config.init; 3 has no effect"]
    assert ignored_keys(made, made) == []
