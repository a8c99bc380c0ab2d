"""The attention that is captured is the network's own; what is added up does not depend on batches and devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import numbers
from small import images, small_method

from mim_jax.analysis.attention_metrics import layer_divergence
from mim_jax.analysis.cka import cka, hsic1, normalise_hsic
from mim_jax.analysis.measure import (
    HeadDiversity,
    MeasureOptions,
    NetworkMeans,
    encoder_attention,
    make_measure_step,
    measure,
)
from mim_jax.config.check import ConfigError
from mim_jax.data import place
from mim_jax.methods.method import Method
from mim_jax.models.positions import relative_index
from mim_jax.targets.pixels import unpatchify
from mim_jax.training.sharding import batch_sharding, replicated
from tests.official import split_heads

SIZE = 16


def noisy(method: Method, seed: int = 0) -> Any:
    """Random parameters of which none is 0, so that no map is even."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        scale = jax.tree_util.keystr(path).endswith("['scale']")
        return (scale + 0.3 * random.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def by_hand(method: Method, params: Any, tokens: np.ndarray, index: int) -> np.ndarray:
    """softmax(q k' / sqrt(d) + bias) of a block from the tokens that enter it, numpy, [B, H, N, N]."""
    vit, encoder = method.net, jax.tree.map(np.asarray, params["encoder"])
    block = encoder[f"block_{index:02d}"]
    x = tokens.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + vit.norm_eps)
    x = x * block["norm1"]["scale"] + block["norm1"]["bias"]
    qkv = block["attn"]["qkv"]
    made = np.tensordot(x, qkv["kernel"], 1) + qkv.get("bias", 0)
    q, k = made[:, :, 0], made[:, :, 1]
    if "q_bias" in qkv:
        q = q + qkv["q_bias"]
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(vit.width // vit.heads)
    holder = {"shared": encoder, "per_block": block}.get(vit.relative_bias)
    if holder is not None:
        table = holder["relative_position_bias"]["table"]
        logits = logits + table[relative_index(vit.grid, vit.cls)].transpose(2, 0, 1)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"cls": True, "qkv_bias": "qkv", "relative_bias": "none"},
        {"cls": False, "qkv_bias": "qv", "relative_bias": "per_block", "positions": "none"},
        {"cls": True, "qkv_bias": "qv", "relative_bias": "shared", "layer_scale": 0.5, "remat": "block"},
    ],
)
def test_what_is_captured_is_the_attention_by_hand(options: dict[str, Any]) -> None:
    method = small_method("simmim", {f"model.{key}": value for key, value in options.items()})
    params, batch = noisy(method), images(3, SIZE)
    layers, captured = jax.jit(lambda p, x: encoder_attention(method, p, x))(params, batch)
    assert len(captured) == 2 and captured[0].dtype == jnp.float32
    for index, log_weights in enumerate(captured):
        assert log_weights.shape == (3, 1, 2, method.net.num_tokens, method.net.num_tokens)
        weights = np.exp(np.asarray(log_weights, np.float64))
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        expected = by_hand(method, params, np.asarray(layers[index]), index)
        np.testing.assert_allclose(weights[:, 0], expected, atol=1e-5)
        assert expected.std() > 0.02  # else nothing would be shown
    plain = jax.jit(lambda p, x: method.encode(p, x).layers)(params, batch)
    for ours, theirs in zip(layers[1:], plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_nothing_is_captured_unasked() -> None:
    method = small_method("simmim")
    shapes = jax.eval_shape(method.module.init, jax.random.key(0), method.patches(images(1, SIZE)))
    assert set(shapes) == {"params"}
    params = jax.eval_shape(method.init_params, jax.random.key(0))
    asked = jax.make_jaxpr(lambda p, x: encoder_attention(method, p, x))(params, images(1, SIZE))
    plain = jax.make_jaxpr(lambda p, x: method.encode(p, x).layers)(params, images(1, SIZE))
    assert " log " in str(asked) and " log " not in str(plain)


@pytest.mark.slow
def test_mask_blocks_become_one_mask() -> None:
    """A two-stream network: what is hidden has weight 0, and the outputs are those of the blocks."""
    method = small_method("mapet", {"method.vocabulary": 8})
    params, layout = noisy(method), method.layout
    order = jnp.tile(jnp.arange(17), (2, 1))
    patches = jax.random.normal(jax.random.key(1), (2, 16, 48))

    @jax.jit
    def both(params: Any) -> Any:
        plain = method.apply(params, patches, order, layout, method="two_stream")
        made, sown = method.module.apply(
            {"params": params}, patches, order, layout, method="two_stream", mutable=["attention"]
        )
        return plain, made, [sown["attention"]["encoder"][f"block_0{i}"]["attn"] for i in range(2)]

    plain, made, blocks = both(params)
    np.testing.assert_allclose(plain, made, rtol=1e-4, atol=1e-4)
    keys, targets = layout.keys, layout.targets
    hidden = np.ones((keys + targets, keys), bool)
    for block in layout.mask_blocks:
        hidden[slice(*block.queries), slice(*block.keys)] = (
            False if block.mask is None else ~np.asarray(block.mask)
        )
    for index, block in enumerate(blocks):
        (log_weights,) = block["log_weights"]
        own = hidden[-targets:] if index == 1 else hidden  # the last block has no content rows
        assert log_weights.shape == (2, 1, 2, *own.shape) and np.isfinite(log_weights).all()
        weights = np.exp(np.asarray(log_weights))
        assert (weights[..., own] == 0).all() and (weights[..., ~own] > 0).all()
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def mesh_of(count: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (count, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:count],
    )


def measured(method: Method, params: Any, pictures: np.ndarray, batch: int, devices: int) -> NetworkMeans:
    """With batches of so many over so many devices; the last one is padded with what must not count."""
    mesh = mesh_of(devices)
    what = MeasureOptions(features="flatten", group=4, embedding=True)

    def batches() -> Any:
        for at in range(0, len(pictures), batch):
            part = pictures[at : at + batch]
            valid = np.arange(batch) < len(part)
            padded = np.concatenate([part, np.full((batch - len(part), *part.shape[1:]), 255, np.uint8)])
            yield place({"image": padded, "valid": valid}, batch_sharding(mesh))

    look, where = make_measure_step(method, what, mesh), method.net.geometry
    return measure(look, jax.device_put(params, replicated(mesh)), batches(), geometry=where)


@pytest.fixture(scope="module")
def network() -> tuple[Method, Any, np.ndarray, NetworkMeans]:
    method = small_method("simmim", {"model.depth": 4})
    params, pictures = noisy(method), images(19, SIZE)
    return method, params, pictures, measured(method, params, pictures, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "devices"), [(4, 1), (20, 1)])
def test_batches_and_devices_do_not_matter(network: Any, batch: int, devices: int) -> None:
    method, params, pictures, found = network
    other = measured(method, params, pictures, batch, devices)
    assert (other.images, other.cka_images) == (found.images, found.cka_images) == (19, 16)
    np.testing.assert_allclose(other.cka, found.cka, atol=1e-6)
    for ours, theirs in zip(other.blocks, found.blocks, strict=True):
        for name in ("distance", "distance_renorm", "entropy", "entropy_patch", "cross"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_means_are_those_of_the_whole_set(network: Any) -> None:
    method, params, pictures, found = network
    layers, captured = jax.jit(lambda p, x: encoder_attention(method, p, x))(params, pictures)
    for block, log_weights, where in zip(found.blocks, captured, method.net.geometry, strict=True):
        whole = numbers(np.asarray(log_weights), where)
        for ours, theirs in (
            (block.distance, whole.drop), (block.distance_renorm, whole.renorm), (block.entropy, whole.entropy),
            (block.entropy_patch, whole.entropy_patch), (block.kl, whole.kl),
        ):  # fmt: skip
            np.testing.assert_allclose(ours, theirs.mean(axis=0), rtol=1e-5, atol=2e-6)
        assert block.layer_kl == pytest.approx(layer_divergence(whole.kl).mean(), rel=1e-5)
    criteria = []
    for at in range(0, 16, 4):
        rows = [np.asarray(layer, np.float64)[at : at + 4, 1:].reshape(4, -1) for layer in layers]
        criteria.append(hsic1(np.stack([row @ row.T for row in rows])))
    np.testing.assert_allclose(found.cka, normalise_hsic(np.mean(criteria, axis=0)), atol=1e-5)
    assert found.cka is not None and found.cka.shape == (5, 5)
    mesh = mesh_of(1)
    look = make_measure_step(method, MeasureOptions(features="pool"), mesh)
    batch = place({"image": pictures, "valid": np.arange(19) < 17}, batch_sharding(mesh))
    biased = measure(look, params, [batch], geometry=method.net.geometry)
    pooled = [np.asarray(layer, np.float64)[:17, 1:].mean(axis=1) for layer in layers[1:]]
    assert biased.cka is not None and biased.cka_images == 17
    np.testing.assert_allclose(biased.cka, cka(pooled), atol=1e-5)


@pytest.mark.slow
def test_the_evaluator(network: Any) -> None:
    method, params, pictures, found = network
    mesh = mesh_of(1)
    batch = place({"image": pictures, "valid": np.ones(19, bool)}, batch_sharding(mesh))
    evaluator = HeadDiversity(method, lambda: [batch], mesh=mesh)
    state = type("State", (), {"params": params})
    values = evaluator(state, baselines=False)
    kl = found.layer_kl
    assert values == pytest.approx(
        {
            "eval/head_kl_last3": kl[1:].mean(),
            "eval/head_kl_first": kl[0],
            "eval/diversity_ratio": kl[1:].mean() / kl[0],
            "eval/attention_distance_px": np.mean([block.distance for block in found.blocks]),
            "eval/attention_entropy": np.mean([block.entropy for block in found.blocks]),
        },
        rel=1e-5,
    )
    with pytest.raises(ConfigError, match="no images"):
        HeadDiversity(method, lambda: [], mesh=mesh)(state, baselines=False)
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    with pytest.raises(ConfigError, match="not finite numbers"):
        evaluator(type("State", (), {"params": broken}), baselines=False)


@pytest.fixture
def transformers() -> Any:
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    if not hasattr(
        torch.ops.torchvision, "nms"
    ):  # its torchvision may be another build, which must not be called
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.declared_for_torchvision = library  # they live as long as this object
    return pytest.importorskip("transformers", reason="transformers, the oracle, is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Beit", "ViT"])
def test_transformers_attention(transformers: Any, name: str) -> None:
    import torch

    beit = name == "Beit"
    shared = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=16, patch_size=4,
        attn_implementation="eager", layer_norm_eps=1e-6,
    )  # fmt: skip
    own = dict(
        use_shared_relative_position_bias=True, use_absolute_position_embeddings=False, use_mask_token=False,
        layer_scale_init_value=0.1,
    )  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**shared, **(own if beit else {}))
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{name}Model")(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    options: dict[str, Any] = {
        "model.heads": 4, "model.positions": "learned", "model.relative_bias": "none", "model.qkv_bias": "qkv",
        "model.layer_scale": None,
    }  # fmt: skip
    if beit:
        options = {
            "model.heads": 4, "model.positions": "none", "model.relative_bias": "shared", "model.qkv_bias": "qv",
            "model.layer_scale": 0.1,
        }  # fmt: skip
    method = small_method("simmim", options)
    state = {key: value.detach().numpy() for key, value in theirs.state_dict().items()}
    pictures = images(3, SIZE)
    pixels = np.asarray(unpatchify(method.patches(jnp.asarray(pictures)), method.net.grid))
    expected = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), output_attentions=True)
    params = {"encoder": encoder_of(state, beit), "head": {}, "mask_token": np.zeros((1, 1, 32))}
    _, captured = jax.jit(lambda p, x: encoder_attention(method, p, x))(params, pictures)
    for ours, attention in zip(captured, expected.attentions, strict=True):
        np.testing.assert_allclose(np.exp(ours[:, 0]), attention.detach().numpy(), atol=1e-5)
        assert attention.std() > 0.01


def encoder_of(state: dict[str, np.ndarray], beit: bool) -> dict[str, Any]:
    """transformers' names and layouts to ours."""

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def block(name: str) -> dict[str, Any]:
        kernel = np.concatenate([state[f"{name}.attention.{x}_proj.weight"].T for x in "qkv"], axis=1)
        biases = {x: state.get(f"{name}.attention.{x}_proj.bias") for x in "qkv"}
        made: dict[str, Any] = {
            "norm1": norm(f"{name}.layernorm_before"),
            "norm2": norm(f"{name}.layernorm_after"),
            "mlp": {part: dense(f"{name}.mlp.{part}") for part in ("fc1", "fc2")},
        }
        qkv = {"kernel": kernel}
        if beit:
            qkv |= {"q_bias": biases["q"], "v_bias": biases["v"]}
            made |= {f"ls{i}": {"gamma": state[f"{name}.lambda_{i}"]} for i in (1, 2)}
        else:
            qkv["bias"] = np.concatenate(list(biases.values()))
        made["attn"] = {"qkv": qkv, "proj": dense(f"{name}.attention.o_proj")}
        return made

    projection = state["embeddings.patch_embeddings.projection.weight"]
    encoder = {
        "patch_embed": {
            "kernel": projection.transpose(2, 3, 1, 0).reshape(-1, 32),
            "bias": state["embeddings.patch_embeddings.projection.bias"],
        },
        "cls_token": state["embeddings.cls_token"],
        "norm": {"scale": np.ones(32), "bias": np.zeros(32)},
        **{f"block_0{index}": block(f"layers.{index}") for index in range(2)},
    }
    encoder = split_heads(encoder)
    if beit:
        table = state["shared_position_bias.relative_position_bias_table"]
        return {**encoder, "relative_position_bias": {"table": table}}
    return {**encoder, "pos_embed": state["embeddings.position_embeddings"]}
