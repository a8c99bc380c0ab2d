"""Accelerators compute in bfloat16: what is summed over batch and tokens must still be summed in float32.

A bfloat16 has 8 bits: a running sum in it stands still once it is 256 times its next summand. So the tests have many rows,
and read the programs for the sums, as no small network shows what 50,000 rows do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, drawn, keys, small_method

from mim_jax.methods import Method, Variables
from mim_jax.methods.rules import name_of
from mim_jax.models.layers import Dense, LayerNorm, LayerScale
from tests.programs import products, reduced_in, sum_types

ROWS = 50_432  # 256 images of 197 tokens
ROUNDING = 2.0**-9  # of one bfloat16, relative


@pytest.mark.parametrize("rows", [1_576, 12_608, ROWS])
@pytest.mark.parametrize("layer", ["dense", "layer_scale", "layer_norm"])
def test_sums_over_rows_lose_nothing(layer: str, rows: int) -> None:
    """Gradients of what is broadcast over rows equal a float64 sum of the same bfloat16 cotangents."""
    modules = {
        "dense": Dense(8, dtype=jnp.bfloat16),
        "layer_scale": LayerScale(),
        "layer_norm": LayerNorm(),
    }
    module, rng = modules[layer], np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows // 197, 197, 8)), jnp.bfloat16)
    cotangent = jnp.asarray(rng.normal(size=x.shape) + 0.5, jnp.bfloat16)
    params = {"params": drawn(module, x[:1])}
    pull = jax.jit(lambda p, x, g: jax.vjp(lambda p: module.apply(p, x), p)[1](g)[0])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x, cotangent))
        exact = jax.jit(
            lambda p, x, g: jax.vjp(lambda p: type(module)(**_in_float64(module)).apply(p, x), p)[1](g)[0]
        )(*wide)
    for ours, theirs in zip(jax.tree.leaves(pull(params, x, cotangent)), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.float32
        error = np.linalg.norm(ours - np.asarray(theirs)) / np.linalg.norm(theirs)
        assert error < ROUNDING / 8, (layer, ours.shape)


def _in_float64(module) -> dict:
    fields = {"Dense": ("features",), "LayerScale": (), "LayerNorm": ()}[type(module).__name__]
    return {name: getattr(module, name) for name in fields}


LEARNED = {"model.positions": "learned", "model.layer_scale": 0.1}
METHODS = {
    "mae": ("mae", {"model.positions": "learned"}),
    "simmim": ("simmim", {"model.relative_bias": "shared"}),
    "swin": ("simmim", {"model.variant": "swinv2_mu", "model.patch": 2, "model.window": 4}),
    "beit": ("beit", {"method.num_masked": 6, "model.relative_bias": "per_block"}),
    "mapet": ("mapet", {"model.layer_scale": 0.1}),
    "pim": ("mapet", {"method.objective": "pim"}),
    "zoom_in+mask": ("beyond_masking", {"model.image_size": 28}),
    "zoom_out": ("beyond_masking", {"method.task": "zoom_out", "model.image_size": 28}),
    "amt": ("amt", {"method.start": 1, "method.interval": 1}),
    "amt_simmim": (
        "amt",
        {"method.start": 1, "method.interval": 1, "method.base": "simmim", "model.image_size": 32, **LEARNED},
    ),
    "classify": ("supervised", {"method.num_classes": 4, **LEARNED}),
    "classify_cls": ("supervised", {"method.num_classes": 4, "method.pool": "cls"}),
}
"""Together every kind of parameter: tokens, positions, tables, scales, q and v biases, decoders, heads."""


def method_in(name: str, dtype: str, **more: int) -> Method:
    """The method in its last phase, computing in `dtype`."""
    file, overrides = METHODS[name]
    method = small_method(file, {"model.drop_path": 0.0, **overrides, "model.dtype": dtype, **more})
    return method.phases[-1].method


def rows_of(method: Method, count: int) -> dict[str, np.ndarray]:
    """A batch of the size that the method asks for, with AMT's maps."""
    size, (rows, columns) = method.view(True).keys["image"].shape[0], method.net.grid
    maps = np.random.default_rng(0).random((count, rows, columns)).astype(np.float32)
    return {**batch(count, size), "attention": maps}


def view_of(method: Method, count: int):
    """The corrupted batch, float32."""
    variables = method.prepare(lambda: [rows_of(method, 64)["image"]], 0)
    return jax.jit(lambda k, b: method.corrupt(k, b, variables))(keys(count), rows_of(method, count))


def gradient_of(method: Method):
    """(params, view) -> gradient of the mean loss."""

    def value(params, view):
        terms = method.loss(
            method.forward(Variables(params), view, keys(len(jax.tree.leaves(view)[0])), True), view
        )
        return sum(w * jnp.sum(terms[k][0]) / jnp.sum(terms[k][1]) for k, w in method.loss_weights.items())

    return jax.grad(value)


def shaken(method: Method):
    """Fresh parameters with noise in every one, so that none is 0 and every path carries gradient."""
    shapes, rng = jax.eval_shape(method.init_params, jax.random.key(0)), np.random.default_rng(0)
    ones = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full(leaf.shape, name_of(path).endswith(("scale", "gamma")), np.float32), shapes
    )
    return jax.tree.map(lambda p: p + rng.normal(scale=0.1, size=p.shape).astype(np.float32), ones)


@pytest.mark.slow
def check_reductions(program, params) -> None:
    """What is reduced over devices is what products and sums over examples give: float32, not a bfloat16 made float32."""
    paths = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    reductions = dict(zip(paths, reduced_in(program), strict=True))
    assert {kind for kind, _ in reductions.values()} >= {"dot_general", "reduce_sum"}
    assert {name for name, (_, dtype) in reductions.items() if dtype != "float32"} == set()


@pytest.mark.parametrize("name", METHODS)
def test_no_sum_and_no_large_product_in_the_wrong_precision(name: str) -> None:
    """In the program of the gradient, before any compiler: as lowered for TPUs and for GPUs.

    float32 products that may be: SwinV2's small network for its position bias, whose logits go up to 16 (two layers a block,
    forward and backward), and the resizing of predicted images in the loss of the zoom tasks.
    """
    method = method_in(name, "bfloat16")
    view = view_of(method, 8)
    params = jax.eval_shape(method.init_params, jax.random.key(0))
    traced = jax.jit(gradient_of(method)).trace(params, view)
    check_reductions(traced.jaxpr.jaxpr, params)
    allowed = {"swin": 5 * method.net.depth, "zoom_in+mask": 4, "zoom_out": 4}.get(name, 0)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        sums, found = sum_types(text), products(text)
        assert len(sums) > 10 and "bf16" not in sums
        wrong = [p for p in found if p[:2] != ("bf16", "bf16")]
        assert len(found) > 20 and len(wrong) == allowed, wrong


BOUND, BOUND_OF_LOGITS = 0.04, 0.15
"""Relative error of a parameter's gradient in bfloat16, by norm. Inputs of products are rounded by 2^-9 relative, some 40 times
between image and loss and back: 2^-9 x sqrt(40) = 1.2 %, three times which is allowed. What is added to attention's logits has
a gradient that sums to 0 over the keys: it is a difference of larger numbers that were rounded."""
ADDED_TO_LOGITS = ("table", "cpb_fc1/kernel", "cpb_fc1/bias", "cpb_fc2/kernel")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("pim", "zoom_out", "classify_cls")]
)
def test_gradients_agree_with_those_in_float32(name: str) -> None:
    one = {} if name == "swin" else {"model.depth": 1, "method.decoder_depth": 1}  # block
    wide, narrow = (method_in(name, dtype, **one) for dtype in ("float32", "bfloat16"))
    params, view = shaken(wide), view_of(wide, 32)
    exact = jax.jit(gradient_of(wide))(params, view)
    ours = jax.jit(gradient_of(narrow))(params, view)
    scale = max(float(np.linalg.norm(leaf)) for leaf in jax.tree.leaves(exact))
    errors = {}
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.float32
        size = float(np.linalg.norm(b))
        if size > 1e-4 * scale:  # smaller: nothing but rounding, such as the bias of k
            errors[name_of(path)] = float(np.linalg.norm(np.asarray(a) - np.asarray(b))) / size
    assert len(errors) > 10
    print({k: f"{v:.4f}" for k, v in sorted(errors.items(), key=lambda pair: -pair[1])[:6]})
    for parameter, error in errors.items():
        assert error < (BOUND_OF_LOGITS if parameter.endswith(ADDED_TO_LOGITS) else BOUND), parameter
