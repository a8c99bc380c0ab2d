"""Inputs of a train step without a run's data: to time it (`mim_jax.benchmark`), or to compile it from shapes (`mim_jax.plan`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import NamedSharding

from mim_jax.config.files import override
from mim_jax.data.views import ArraySpec
from mim_jax.methods import Method, Variables

PREPARE_IMAGES = 64


def without_token_cache(config: ml_collections.ConfigDict) -> bool:
    """Where a method's tokenizer lies in a file that is not given, lets the token ids come with the batch; whether it did."""
    method = config.method
    missing = (
        method.get("tokenizer", "pixels") != "pixels"
        and not method.get("weights")
        and not method.get("tokens")
    )
    if missing:
        override(config, {"method.tokens": "random ids"})
    return missing


def batch_specs(method: Method, vocabulary: int = 0) -> dict[str, ArraySpec]:
    """Shape and dtype of every array of a batch, per example. vocabulary: of token ids in it; 0 = none."""
    specs = {
        "index": ArraySpec((), "int32"),
        "epoch": ArraySpec((), "int32"),
        "valid": ArraySpec((), "bool"),
        **method.view(train=True).keys,
        **{
            refresh.name: ArraySpec(refresh.shape, refresh.dtype)
            for refresh in method.refreshes
            if not refresh.on_device
        },
    }
    if vocabulary:
        specs["tokens"] = ArraySpec((method.net.num_patches,), "int32", below=vocabulary)
    return specs


def random_batch(specs: Mapping[str, ArraySpec], count: int) -> dict[str, np.ndarray]:
    """Noise of these shapes, for `count` examples."""
    random = np.random.default_rng(0)
    batch: dict[str, np.ndarray] = {}
    for name, spec in specs.items():
        shape, dtype = (count, *spec.shape), np.dtype(spec.dtype)
        if dtype == np.uint8 or spec.below is not None:
            batch[name] = random.integers(0, spec.below or 256, shape).astype(dtype)
        elif np.issubdtype(dtype, np.floating):
            batch[name] = random.random(shape).astype(dtype)
        else:
            batch[name] = np.zeros(shape, dtype)
    batch["index"] = np.arange(count, dtype=np.int32)
    batch["valid"] = np.ones(count, bool)
    if "box" in batch:
        batch["box"][:] = (0.0, 0.0, 1.0, 1.0)
    return batch


def abstract_batch(
    specs: Mapping[str, ArraySpec], count: int, sharding: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch of `count` examples."""
    return {
        name: jax.ShapeDtypeStruct((count, *spec.shape), np.dtype(spec.dtype), sharding=sharding)
        for name, spec in specs.items()
    }


def prepared(method: Method, num_examples: int) -> Variables:
    """What the method prepares, from noise. Tables on the device (`Refresh.on_device`) are shapes, of `num_examples` rows."""
    images = random_batch(method.feature_view.keys | {"index": ArraySpec((), "int32")}, PREPARE_IMAGES)[
        "image"
    ]
    variables = method.prepare(lambda: [images], 0)
    tables: dict[str, Any] = {
        refresh.name: jax.ShapeDtypeStruct((num_examples, *refresh.shape), np.dtype(refresh.dtype))
        for refresh in method.refreshes
        if refresh.on_device
    }
    return dataclasses.replace(variables, artefacts=variables.artefacts | tables | method.constants)
