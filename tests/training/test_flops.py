"""The FLOPs formula against XLA's own count of the forward and backward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config

from mim_jax.methods import Variables, build_method


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mapet", "pim", "mim"])
def test_formula_is_within_two_percent_of_xla(objective: str) -> None:
    config = small_config(
        "mapet",
        {
            "method.objective": objective,
            "model.width": 384,
            "model.depth": 3,
            "model.heads": 6,
            "model.image_size": 224,
            "model.patch": 16,
            "method.vocabulary": 8192,
        },
    )
    method = build_method(dataclasses.replace(config))
    params = jax.eval_shape(method.init_params, jax.random.key(0))
    count = 4
    length = method.vit.num_patches
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    data = {"image": jax.ShapeDtypeStruct((count, 224, 224, 3), jnp.uint8)}
    held = Variables(artefacts={"centroids": jax.ShapeDtypeStruct((8192, 768), jnp.float32)})
    view = jax.eval_shape(method.corrupt, keys, data, held)
    assert view["patches"].shape == (count, length, 768)

    def loss(params, view, keys):
        total, _ = method.loss(method.forward(Variables(params), view, keys, True), view)["loss"]
        return jnp.sum(total)

    counted = jax.jit(jax.grad(loss)).lower(params, view, keys).cost_analysis()["flops"] / count
    assert method.flops() == pytest.approx(counted, rel=0.02), method.flops() / counted
    assert np.isfinite(counted)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["mae", "simmim"])
def test_masking_and_throwing_are_counted_as_xla_counts_them(base: str) -> None:
    """AMT in the phase that attention drives: thrown patches cost nothing, in the formula and in the program."""
    config = small_config(
        "amt",
        {
            "method.base": base, "method.start": 1, "model.width": 384, "model.depth": 3, "model.heads": 6,
            "model.image_size": 224, "model.patch": 16, "method.decoder_width": 256, "method.decoder_depth": 2,
            "method.decoder_heads": 8,
        },
    )  # fmt: skip
    random = build_method(config)
    counts = []
    for method in (random, random.phases[-1].method):
        params = jax.eval_shape(method.init_params, jax.random.key(0))
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
        data = {
            "image": jax.ShapeDtypeStruct((4, 224, 224, 3), jnp.uint8),
            "attention": jax.ShapeDtypeStruct((4, 14, 14), jnp.float32),
            "box": jax.ShapeDtypeStruct((4, 4), jnp.float32),
        }
        view = jax.eval_shape(lambda k, d, m=method: m.corrupt(k, d, Variables()), keys, data)

        def loss(params, view, keys, method=method):
            total, _ = method.loss(method.forward(Variables(params), view, keys, True), view)["loss"]
            return jnp.sum(total)

        counted = jax.jit(jax.grad(loss)).lower(params, view, keys).cost_analysis()["flops"] / 4
        assert method.flops() == pytest.approx(counted, rel=0.02), method.flops() / counted
        counts.append(counted)
    assert counts[1] < 0.8 * counts[0]
