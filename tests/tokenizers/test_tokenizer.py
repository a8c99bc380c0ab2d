"""Tokenizers from files: what the official names give, what a k-means file holds, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.config.check import ConfigError
from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import write_weights
from mim_jax.interop.teachers import dalle_from, vqkd_from
from mim_jax.models.dalle import DalleConfig, DalleEncoder
from mim_jax.models.vit import ViTConfig
from mim_jax.models.vqkd import Vqkd, VqkdConfig
from mim_jax.targets.pixels import patchify
from mim_jax.targets.tokens import nearest_centroid
from mim_jax.tokenizers.teachers import load_teacher, make_teacher
from mim_jax.tokenizers.tokenizer import check_tokenizer_fits, open_tokenizer, save_kmeans, tokenizer_flops
from tests.official import split_heads

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: 0.3 * random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def vqkd_state(width: int = 64, patch: int = 4, grid: int = 4) -> dict[str, np.ndarray]:
    """BEiT v2's names, one block."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.cls_token": (1, 1, width),
        "encoder.pos_embed": (1, grid**2 + 1, width),
        "encoder.patch_embed.proj.weight": (width, 3, patch, patch),
        "encoder.patch_embed.proj.bias": (width,),
        "encoder.blocks.0.attn.qkv.weight": (3 * width, width),
        "encoder.blocks.0.attn.q_bias": (width,),
        "encoder.blocks.0.attn.v_bias": (width,),
        "quantize.embedding.weight": (40, 8),
        "encode_task_layer.0.weight": (width, width),
        "encode_task_layer.0.bias": (width,),
        "encode_task_layer.2.weight": (8, width),
        "encode_task_layer.2.bias": (8,),
    }
    for name, out, into in (("attn.proj", width, width), ("mlp.fc1", 256, width), ("mlp.fc2", width, 256)):
        shapes |= {f"encoder.blocks.0.{name}.weight": (out, into), f"encoder.blocks.0.{name}.bias": (out,)}
    for name in ("encoder.blocks.0.norm1", "encoder.blocks.0.norm2", "encoder.norm"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return filled(shapes)


def dalle_state(hidden: int = 16, vocabulary: int = 32) -> dict[str, np.ndarray]:
    """OpenAI's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "blocks.input.w": (hidden, 3, 7, 7),
        "blocks.input.b": (hidden,),
        "blocks.output.conv.w": (vocabulary, 8 * hidden, 1, 1),
        "blocks.output.conv.b": (vocabulary,),
    }
    before = hidden
    for group in range(4):
        width = hidden * 2**group
        for block in range(2):
            name, narrow = f"blocks.group_{group + 1}.block_{block + 1}", width // 4
            if before != width:
                shapes |= {f"{name}.id_path.w": (width, before, 1, 1), f"{name}.id_path.b": (width,)}
            for number, (out, into, side) in enumerate(
                ((narrow, before, 3), (narrow, narrow, 3), (narrow, narrow, 3), (width, narrow, 1)), start=1
            ):
                conv = f"{name}.res_path.conv_{number}"
                shapes |= {f"{conv}.w": (out, into, side, side), f"{conv}.b": (out,)}
            before = width
    return filled(shapes)


@pytest.mark.slow
def test_vqkd_by_its_official_names(tmp_path) -> None:
    state = vqkd_state()
    write_weights(tmp_path / "vqkd.safetensors", state)
    tokenizer = open_tokenizer("vqkd", tmp_path / "vqkd.safetensors")
    assert (tokenizer.vocabulary, tokenizer.image_size, tokenizer.grid) == (40, (16, 16), (4, 4))
    images = jnp.asarray(np.random.default_rng(1).random((3, 16, 16, 3), np.float32))
    vit = ViTConfig((16, 16), 4, 64, 1, 1, qkv_bias="qv")
    module, params = Vqkd(VqkdConfig(vit, 8, 40)), split_heads(vqkd_from(state), head_dim=64)
    expected = jax.jit(lambda p: module.apply({"params": p}, patchify(2 * images - 1, 4), method="ids"))(
        params
    )
    np.testing.assert_array_equal(jax.jit(tokenizer.ids)(tokenizer.params, images), expected)
    assert len(np.unique(expected)) > 3 and tokenizer_flops(tokenizer) > 1e6


@pytest.mark.slow
def test_dalle_by_its_official_names(tmp_path) -> None:
    state = dalle_state()
    write_weights(tmp_path / "dalle.safetensors", state)
    tokenizer = open_tokenizer("dalle", tmp_path / "dalle.safetensors")
    facts = (tokenizer.vocabulary, tokenizer.image_size, tokenizer.grid, tokenizer.resample)
    assert facts == (32, (112, 112), (14, 14), "lanczos")
    images = jnp.asarray(np.random.default_rng(1).random((1, 112, 112, 3), np.float32))
    module, params = DalleEncoder(DalleConfig(hidden=16, vocabulary=32)), dalle_from(state)
    expected = jax.jit(lambda p: module.apply({"params": p}, 0.8 * images + 0.1, method="ids"))(params)
    np.testing.assert_array_equal(jax.jit(tokenizer.ids)(tokenizer.params, images), expected)


@pytest.mark.slow
def test_a_kmeans_file_holds_its_teacher(tmp_path) -> None:
    state = {
        name.removeprefix("encoder."): value
        for name, value in vqkd_state().items()
        if name.startswith("encoder.")
    }
    write_weights(tmp_path / "vit.safetensors", state)
    options = dict(image_size=None, patch=0, heads=None, **STATISTICS)
    teacher, params = load_teacher("vit", str(tmp_path / "vit.safetensors"), **options)
    assert (teacher.image_size, teacher.grid, teacher.width) == ((16, 16), (4, 4), 64)
    images = np.random.default_rng(1).random((3, 16, 16, 3), np.float32)
    features = jax.jit(teacher.features)(params, images)
    centroids = np.asarray(features).reshape(-1, 64)[::3]
    save_kmeans(tmp_path / "kclip.safetensors", teacher, params, centroids)
    tokenizer = open_tokenizer("kclip", tmp_path / "kclip.safetensors")
    ids = np.asarray(jax.jit(tokenizer.ids)(tokenizer.params, images))
    np.testing.assert_array_equal(ids, nearest_centroid(features, jnp.asarray(centroids)))
    np.testing.assert_array_equal(ids.ravel()[::3], np.arange(len(centroids)))  # a centroid is its own code
    assert make_teacher(tokenizer.teacher.config).config == teacher.config
    check_tokenizer_fits(tokenizer, "file", len(centroids), (4, 4))
    with pytest.raises(ConfigError, match=f"vocabulary={len(centroids)}"):
        check_tokenizer_fits(tokenizer, "file", 8192, (4, 4))
    with pytest.raises(ConfigError, match="is a kclip tokenizer"):
        open_tokenizer("pixels", tmp_path / "kclip.safetensors")
    with pytest.raises(ConfigError, match="no tokenizer of ours"):
        open_tokenizer("kclip", tmp_path / "vit.safetensors")


def test_what_is_refused(tmp_path) -> None:
    write_weights(
        tmp_path / "half.safetensors", {k: v for k, v in dalle_state().items() if "group_2" not in k}
    )
    with pytest.raises(WeightsError, match=r"group_2_block_1.* missing"):
        open_tokenizer("dalle", tmp_path / "half.safetensors")
    options = dict(patch=4, heads=None, **STATISTICS)
    with pytest.raises(ConfigError, match="has no weights"):
        load_teacher("pixels", "file.safetensors", image_size=(8, 8), **options)
    with pytest.raises(ConfigError, match=r"needs config\.job\.weights"):
        load_teacher("vit", "", image_size=None, **options)
    with pytest.raises(ConfigError, match="no size of their own"):
        load_teacher("pixels", "", image_size=None, **options)
    with pytest.raises(ConfigError, match="lacks layers, width"):
        make_teacher({"kind": "clip_resnet", "image_size": (32, 32), **STATISTICS})
    with pytest.raises(ConfigError, match="did you mean"):
        open_tokenizer("kclp", tmp_path / "half.safetensors")
