"""A method's own corrupt, forward and loss, as the trainer runs them, on given draws, images and parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from small import keys, small_method

from mim_jax.methods import Variables
from mim_jax.methods.method import Method
from mim_jax.methods.terms import means, sum_terms

AS_THEY_ARE = {"data.mean": (0.0, 0.0, 0.0), "data.std": (1.0, 1.0, 1.0), "model.drop_path": 0.0}
"""For images that are normalised already: the method's own normalisation changes nothing."""


class Run(NamedTuple):
    """What one training step computes before its update; gradients only where they are asked for."""

    loss: jax.Array
    sums: dict[str, tuple[jax.Array, jax.Array]]
    view: dict[str, jax.Array]
    outputs: dict[str, jax.Array]
    by_params: Any = None
    by_input: Any = None  # gradient through what the network sees
    by_target: Any = None  # and through what its output is compared with


def production(file: str, overrides: dict[str, Any], **draws: Any) -> Method:
    """The method of a config file for images that are normalised already, with given draws in place of its own."""
    return given(small_method(file, {**AS_THEY_ARE, **overrides}), **draws)


def given(method: Method, **draws: Any) -> Method:
    """The method, which from now on draws these arrays [B, ...], by name."""
    drawn = {name: jnp.asarray(value) for name, value in draws.items()}
    method.draws = lambda keys: drawn  # type: ignore[attr-defined]
    return method


def run(method: Method, params: Any, image: jax.Array, *, derive: bool = False, **batch: Any) -> Run:
    """Loss and gradients of a batch of whole, unflipped images [B, H, W, 3] in float, with further batch keys."""
    count = len(image)
    data = {
        "index": jnp.arange(count),
        "flip": jnp.zeros(count, bool),
        "box": jnp.tile(jnp.asarray([0.0, 0.0, 1.0, 1.0], jnp.float32), (count, 1)),
        "valid": jnp.ones(count, bool),
        **{name: jnp.asarray(value) for name, value in batch.items()},
    }

    def objective(params: Any, seen: jax.Array, compared: jax.Array) -> Any:
        view = method.corrupt(keys(count), {**data, "image": seen}, Variables())
        if "target" in view:
            other = method.corrupt(keys(count), {**data, "image": compared}, Variables())
            view = {**view, "target": other["target"]}
        outputs = method.forward(Variables(params), view, keys(count), True)
        sums = sum_terms(method.loss(outputs, view), data["valid"])
        return means(sums, method.loss_weights)["loss"], (sums, view, outputs)

    if not derive:
        loss, (sums, view, outputs) = jax.jit(objective)(params, image, image)
        return Run(loss, sums, view, outputs)
    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True))
    (loss, (sums, view, outputs)), gradients = gradient(params, image, image)
    return Run(loss, sums, view, outputs, *gradients)


def fills(method: Method, params: Any) -> None:
    """The parameters are the whole tree of the method's network, shape for shape."""
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda s: s.shape, shapes)
