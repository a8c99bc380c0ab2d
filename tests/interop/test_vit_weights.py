"""ViTs of timm, transformers, OpenAI and the papers: the same features from their weights, and what is told of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import fit, read_weights
from mim_jax.interop.official import from_mae, from_mapet, from_simmim
from mim_jax.interop.vit import EncoderSpec, encoder_from
from mim_jax.models.vit import ViT
from mim_jax.targets.pixels import patchify
from tests.conftest import official
from tests.oracles import oracle, shake, state_of

HEADS = 4
SMALL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=88, image_size=24, patch_size=8
)  # fmt: skip
TIMM = dict(img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=HEADS, mlp_ratio=2.75, num_classes=5)
IMAGES = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)


def ours(state: dict[str, np.ndarray]) -> tuple[EncoderSpec, np.ndarray, np.ndarray]:
    """Facts, rows after the last block, rows after the final norm."""
    tree, spec = encoder_from(state)
    config = spec.config(HEADS)
    patches = patchify(jnp.asarray(IMAGES), 8)
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), patches)["params"]
    params = jax.tree.map(jnp.asarray, fit(shapes, tree, "the test"))
    layers, normed = jax.jit(lambda x: ViT(config).apply({"params": params}, x, method="layers"))(patches)
    return spec, layers[-1], normed


def theirs(network: Any, call: Callable[[Any, Any], Any]) -> np.ndarray:
    torch = oracle("torch")
    with torch.no_grad():
        return call(network, torch.from_numpy(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))).numpy()


def hidden(network: Any, x: Any) -> Any:
    return network(pixel_values=x).last_hidden_state


def close(actual: Any, expected: np.ndarray) -> None:
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.5, "class_token": False, "global_pool": "avg", "fc_norm": False},
        {"no_embed_class": True, "qkv_bias": False, "init_values": 0.5},
    ],
    ids=["plain", "no cls", "deit3"],
)
def test_timm(options: dict) -> None:
    network = shake(oracle("timm").models.vision_transformer.VisionTransformer(**TIMM, **options))
    spec, _, normed = ours(state_of(network))
    close(normed, theirs(network, lambda net, x: net.forward_features(x)))
    assert (spec.naming, spec.width, spec.depth, spec.patch, spec.hidden) == ("timm", 32, 2, 8, 88)
    assert spec.layer_scale == ("init_values" in options) and spec.cls == options.get("class_token", True)
    assert spec.num_positions == 9 + spec.cls and spec.grid == (3, 3) and spec.heads is None
    assert spec.qkv_bias == ("qkv" if options.get("qkv_bias", True) else "none")
    assert spec.left_out == ("head.weight", "head.bias") and spec.describe().endswith("left out: head")


def test_timm_with_a_norm_before_the_blocks() -> None:
    network = shake(oracle("timm").models.vision_transformer.VisionTransformer(**TIMM, pre_norm=True))
    spec, _, normed = ours(state_of(network))
    assert spec.pre_norm and not spec.patch_bias and spec.norm_eps == 1e-6
    close(normed, theirs(network, lambda net, x: net.forward_features(x)))


@pytest.mark.parametrize("shared", [False, True])
def test_beit_of_timm(shared: bool) -> None:
    network = oracle("timm").models.beit.Beit(
        **TIMM,
        init_values=0.5,
        use_abs_pos_emb=False,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
    )
    spec, last, normed = ours(state_of(shake(network)))
    close(last, theirs(network, lambda net, x: net.forward_features(x)))
    close(
        np.asarray(normed[:, 1:]), theirs(network, lambda net, x: net.fc_norm(net.forward_features(x)[:, 1:]))
    )
    assert spec.relative_bias == ("shared" if shared else "per_block") and spec.heads == HEADS
    assert (
        spec.qkv_bias == "qv" and spec.norm == "mean" and spec.num_positions is None and spec.grid == (3, 3)
    )
    assert spec.config().heads == HEADS  # seen in the table


@pytest.mark.parametrize("where", ["memory", "file"])
def test_vit_of_transformers(where: str, tmp_path: Path) -> None:
    """In a file the names are the hub's, in memory those of version 5."""
    transformers = oracle("transformers")
    network = shake(transformers.ViTModel(transformers.ViTConfig(**SMALL)))
    if where == "file":
        network.save_pretrained(tmp_path)
        state = read_weights(tmp_path / "model.safetensors")
        assert any(".layer.0.attention.attention.query" in name for name in state)
    else:
        state = state_of(network)
    spec, _, normed = ours(state)
    close(normed, theirs(network, hidden))
    assert spec.naming == "Hugging Face ViT" and spec.norm_eps == 1e-12 and spec.qkv_bias == "qkv"
    assert spec.left_out == ("pooler.dense.weight", "pooler.dense.bias") or where == "file"


def test_beit_of_transformers_with_its_norm_beside_the_encoder(tmp_path: Path) -> None:
    transformers = oracle("transformers")
    network = transformers.BeitForMaskedImageModeling(
        transformers.BeitConfig(**SMALL, use_shared_relative_position_bias=True, vocab_size=7)
    )
    shake(network).save_pretrained(tmp_path)
    spec, _, normed = ours(read_weights(tmp_path / "model.safetensors"))
    close(
        normed,
        theirs(network, lambda net, x: net.layernorm(net.beit(x).last_hidden_state)),
    )
    assert spec.relative_bias == "shared" and spec.layer_scale and spec.qkv_bias == "qv"
    assert spec.norm == "final" and {name.split(".")[0] for name in spec.left_out} == {"lm_head"}


def test_dinov2_of_transformers() -> None:
    transformers = oracle("transformers")
    options = {**SMALL, "intermediate_size": 128}  # it takes a ratio
    network = shake(transformers.Dinov2Model(transformers.Dinov2Config(**options)))
    spec, _, normed = ours(state_of(network))
    close(normed, theirs(network, hidden))
    assert spec.naming == "Hugging Face DINOv2" and spec.layer_scale and spec.norm_eps == 1e-6


def test_openai_names_give_the_tree_of_hugging_faces() -> None:
    transformers = oracle("transformers")
    state = state_of(shake(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL))))
    renames = (
        ("embeddings.class_embedding", "class_embedding"), ("embeddings.patch_embedding", "conv1"),
        ("embeddings.position_embedding.weight", "positional_embedding"), ("pre_layrnorm", "ln_pre"),
        ("post_layernorm", "ln_post"), ("encoder.layers", "transformer.resblocks"), ("self_attn", "attn"),
        ("layer_norm", "ln_"), ("fc1", "c_fc"), ("fc2", "c_proj"),
    )  # fmt: skip
    openai: dict[str, np.ndarray] = {
        "transformer.resblocks.0.ln_1.weight": np.ones(16),
        "visual.proj": np.ones((32, 8)),
    }
    for name, value in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            value = np.concatenate([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("q_proj.", "in_proj_")
        for old, new in renames:
            name = name.replace(old, new)
        openai[f"visual.{name}"] = value
    tree, spec = encoder_from(openai)
    expected, theirs_facts = encoder_from({f"vision_model.{name}": value for name, value in state.items()})
    jax.tree.map(np.testing.assert_array_equal, tree, expected)
    assert spec.naming == "OpenAI CLIP" and theirs_facts.naming == "Hugging Face CLIP"
    assert spec.config(HEADS) == theirs_facts.config(HEADS) and spec.activation == "quick_gelu"
    assert spec.left_out == (
        "transformer.resblocks.0.ln_1.weight",
        "visual.proj",
    )  # text tower and projection


@pytest.mark.parametrize(
    ("fixture", "convert"),
    [("mapet_public", from_mapet), ("mae_public", from_mae), ("simmim_public", from_simmim)],
)
def test_the_papers_own_names(fixture: str, convert: Callable) -> None:
    numbers = official(fixture)
    state = {name[2:]: numbers[name] for name in numbers.files if name.startswith("w/")}
    tree, spec = encoder_from(state)
    jax.tree.map(np.testing.assert_array_equal, tree, convert(state)["encoder"])
    assert spec.naming == "timm" and spec.norm == "final"
    assert spec.qkv_bias == ("qv" if fixture == "simmim_public" else "qkv")


def plain_state(prefix: str = "", **others: np.ndarray) -> dict[str, np.ndarray]:
    """A timm ViT without the oracle: 1 block of width 8."""
    shapes = {
        "cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "patch_embed.proj.weight": (8, 3, 4, 4),
        "patch_embed.proj.bias": (8,), "norm.weight": (8,), "norm.bias": (8,),
        **{f"blocks.0.{name}": shape for name, shape in {
            "norm1.weight": (8,), "norm1.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,),
            "attn.qkv.weight": (24, 8), "attn.qkv.bias": (24,), "attn.proj.weight": (8, 8), "attn.proj.bias": (8,),
            "mlp.fc1.weight": (32, 8), "mlp.fc1.bias": (32,), "mlp.fc2.weight": (8, 32), "mlp.fc2.bias": (8,),
        }.items()},
    }  # fmt: skip
    return {
        f"{prefix}{name}": np.linspace(0.5, 1.5, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        for name, shape in shapes.items()
    } | others


def test_momentum_copies_are_left_out_and_other_doubts_are_the_callers() -> None:
    moco = plain_state("base_encoder.") | plain_state("momentum_encoder.")
    _, spec = encoder_from(moco)
    assert set(spec.left_out) == set(plain_state("momentum_encoder."))
    dino = plain_state("student.") | plain_state("teacher.")
    with pytest.raises(WeightsError, match=r"several ViTs, under student\., teacher\.: name the prefix"):
        encoder_from(dino)
    _, spec = encoder_from(dino, prefix="teacher.")
    assert set(spec.left_out) == set(plain_state("student."))
    with pytest.raises(WeightsError, match="no ViT was recognised under the prefix 'nobody"):
        encoder_from(dino, prefix="nobody.")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"layer1.0.conv1.weight": np.ones((8, 3, 3, 3))}, "no ViT was recognised in 1 tensors"),
        ({}, "no ViT was recognised in 0 tensors"),
        (plain_state(**{"blocks.0.attn.q_norm.weight": np.ones(8)}), "have blocks.0.attn.q_norm.weight, a part"),
        (plain_state(reg_token=np.ones((1, 4, 8))), "have reg_token, a part"),
        (plain_state(dist_token=np.ones((1, 1, 8))), "have dist_token, a part"),
        (
            plain_state(**{"blocks.0.attn.relative_position_bias_table": np.ones((12, 2)),
                           "rel_pos_bias.relative_position_bias_table": np.ones((12, 2))}),
            "per block and one for all",
        ),
        (
            plain_state(**{"blocks.0.attn.q.weight": np.ones((8, 8))}),
            "of the q, k and v weights of blocks.0.attn these weights have q",
        ),
    ],
)  # fmt: skip
def test_what_is_no_such_vit_is_refused_in_one_sentence(state: dict, message: str) -> None:
    with pytest.raises(WeightsError) as error:
        encoder_from(state)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_partial_file_is_told_by_fit() -> None:
    state = plain_state()
    del state["blocks.0.mlp.fc2.bias"], state["norm.weight"], state["norm.bias"]
    tree, spec = encoder_from(state)
    assert spec.norm == "none"
    patches = jax.ShapeDtypeStruct((1, 4, 48), jnp.float32)
    shapes = jax.eval_shape(ViT(spec.config(2)).init, jax.random.key(0), patches)["params"]
    with pytest.raises(WeightsError, match="block_00/mlp/fc2/bias, norm/bias, norm/scale are missing"):
        fit(shapes, tree, "half of it")


def test_what_weights_do_not_tell_is_asked_for() -> None:
    _, spec = encoder_from(plain_state())
    assert spec.config().heads == 1 and spec.config(4).heads == 4  # width / 64, one at least
    with pytest.raises(WeightsError, match="3 heads do not divide the width 8"):
        spec.config(3)
    state = plain_state()
    del state["pos_embed"]
    _, spec = encoder_from(state)
    with pytest.raises(WeightsError, match="do not tell their image size"):
        spec.config()
    assert spec.config(image_size=(8, 12)).grid == (2, 3)
