"""Small resolved configurations and batches for tests."""

import runpy
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.config.check import check
from mim_jax.config.files import override
from mim_jax.config.resolve import resolve
from mim_jax.config.schema import Config
from mim_jax.data import ClassLabel
from mim_jax.methods import Method, Variables, build_method, complete_options

EXAMPLES = 96
SMALL = {
    "model.variant": "mu",
    "model.image_size": 16,
    "model.patch": 4,
    "data.batch_size": 16,
    "method.vocabulary": 32,
    "augment.jitter": 0.0,
    "schedule.epochs": 4.0,
    "schedule.warmup_epochs": 1.0,
}


def small_config(file: str = "mapet", overrides: dict[str, Any] | None = None, devices: int = 1) -> Config:
    """The demo of a config file, shrunk, with overrides "a.b" -> value, resolved for some devices."""
    config = runpy.run_path(f"configs/{file}.py")["get_config"]()
    wanted = {**SMALL, **(overrides or {})}
    override(
        config,
        {
            key: value
            for key, value in wanted.items()
            if not key.startswith("method.") or key.partition(".")[2] in config.method
        },
    )
    resolved = resolve(check(config), num_examples=EXAMPLES, num_devices=devices, platform="cpu")
    return complete_options(resolved)


def small_method(file: str = "mapet", overrides: dict[str, Any] | None = None, devices: int = 1) -> Method:
    """The method of `small_config`."""
    return build_method(small_config(file, overrides, devices))


def drawn(module: nn.Module, *args: Any) -> Any:
    """Random parameters of a module that is called with `args`: kernels by their inputs, scales around 1, the rest around 0."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True)
        noise = rng.normal(size=leaf.shape)
        if name.endswith("kernel"):
            return jnp.asarray(noise * leaf.shape[0] ** -0.5, leaf.dtype)
        return jnp.asarray(0.1 * noise + name.endswith(("scale", "gamma")), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 [count, size, size, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 4, size // 4, 3))
    return np.kron(coarse, np.ones((1, 4, 4, 1))).astype(np.uint8)


def batch(count: int = 16, size: int = 16, first: int = 0) -> dict[str, np.ndarray]:
    """A batch of `images`, as the loader would make it."""
    index = np.arange(first, first + count, dtype=np.int32)
    return {
        "image": images(first + count, size)[first:],
        "index": index,
        "epoch": np.zeros(count, np.int32),
        "box": np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1)),
        "flip": np.zeros(count, bool),
        "label": (index % 4).astype(np.int32),
        "valid": np.ones(count, bool),
    }


def prepared(method: Method, params: Any = None) -> Variables:
    """What the method prepares from the small images, with parameters."""
    variables = method.prepare(lambda: [images(64, method.net.image_size[0])], 0)
    return variables.replace(params=params or {})


def classes(count: int) -> Any:
    """A dataset as far as options are completed by it: images of so many classes."""
    return SimpleNamespace(num_classes=count, annotation=ClassLabel)


def keys(count: int = 16, seed: int = 0) -> jax.Array:
    """One key per example."""
    return jax.random.split(jax.random.key(seed), count)
