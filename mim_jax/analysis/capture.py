"""One forward of a run's encoder over whole images, in which every block's attention becomes a few numbers an image.

The weights of a block stay on the device, and are needed no longer than its own numbers take: what comes back is of the size
[images, heads, heads] a block. One path for all encoders: their attention gives its log weights to the collection "attention".
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.analysis.attention_metrics import (
    attention_distance,
    cross_entropies,
    entropy,
    jensen_shannon,
)
from mim_jax.analysis.cka import gram, rows_of
from mim_jax.methods.method import Batch, Method
from mim_jax.methods.rules import name_of
from mim_jax.models.vit import Params

Look = Callable[[Params, Batch], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class What:
    """What to look at.

    units: of distances, as in `attention_metrics.distances`. jensen_shannon: costs several times all else. features: for
    CKA, as in `cka.rows_of`; None = no CKA. group: images whose features are compared at a time; divides the batch; 0 = the
    features themselves come back, one row an image.
    embedding: the tokens before the first block are a layer, too.
    """

    units: str = "px"
    jensen_shannon: bool = False
    features: str | None = None
    group: int = 0
    embedding: bool = False


def encoder_attention(
    method: Method, params: Params, images: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Of whole images [B, H, W, 3] (as for `method.encode`), nothing hidden, evaluation mode.

    Returns:
        the tokens before the first block and after every block, [B, N, D] each; log weights of every block, float32 at
        least [B, windows, heads, N, N].
    """
    patches = method.patches(images)
    made, sown = method.module.apply(
        {"params": params}, patches, method=_tokens_and_layers, mutable=["attention"]
    )
    flat = jax.tree_util.tree_leaves_with_path(sown["attention"]["encoder"])
    log_weights = [leaf for _, leaf in sorted(flat, key=lambda pair: name_of(pair[0]))]
    if len(log_weights) != len(method.net.geometry):
        raise ValueError(
            f"{len(log_weights)} blocks gave their attention, but the network has {len(method.net.geometry)}"
        )
    return made, log_weights


def _tokens_and_layers(module: Any, patches: jax.Array) -> list[jax.Array]:
    tokens = module.encoder.input_tokens(patches)
    return [tokens, *module.encoder.apply_blocks(tokens)]


def block_numbers(log_weights: jax.Array, geometry: Any, what: What) -> dict[str, jax.Array]:
    """The numbers of one block and each image: [B, H], `cross` and `jensen_shannon` [B, H, H]."""
    cross = cross_entropies(log_weights, geometry)
    numbers = {
        "distance": attention_distance(log_weights, geometry, units=what.units),
        "entropy": jnp.diagonal(cross, axis1=1, axis2=2),
        "cross": cross,
    }
    if (
        geometry.prefix or geometry.regions is not None
    ):  # else all keys are counted patches: the conventions are one
        numbers |= {
            "distance_renorm": attention_distance(log_weights, geometry, cls="renorm", units=what.units),
            "entropy_patch": entropy(log_weights, geometry, keys="patch_renorm"),
        }
    if what.jensen_shannon:
        numbers["jensen_shannon"] = jensen_shannon(log_weights, geometry)
    return numbers


def make_look(method: Method, what: What, mesh: jax.sharding.Mesh) -> Look:
    """One compiled program: (params, batch) -> numbers of its images, whole on every host.

    blocks: `block_numbers` of every block. valid: bool [B]. grams: [groups, layers, n, n] of the groups of `what.group`
    neighbouring images. whole: bool [groups], whether all images of a group are valid. rows: [B, values] of every layer.
    """
    geometry, prefix = method.net.geometry, method.net.prefix

    def look(params: Params, batch: Batch) -> dict[str, Any]:
        layers, log_weights = encoder_attention(method, params, batch["image"])
        blocks = [block_numbers(log, own, what) for log, own in zip(log_weights, geometry, strict=True)]
        out = {"blocks": blocks, "valid": batch["valid"]}
        if what.features is not None:
            kept = layers if what.embedding else layers[1:]
            rows = [rows_of(layer, prefix, what.features) for layer in kept]
            if what.group:
                out["grams"] = jnp.stack([gram(_grouped(layer, what.group)) for layer in rows], axis=1)
                out["whole"] = jnp.all(batch["valid"].reshape(-1, what.group), axis=1)
            else:
                out["rows"] = [layer[:, 0] for layer in rows]
        return out

    return jax.jit(look, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _grouped(rows: jax.Array, group: int) -> jax.Array:
    """[B, rows an image, p] to [groups, rows of a group, p]."""
    if rows.shape[0] % group:
        raise ValueError(f"a batch of {rows.shape[0]} images cannot be cut into groups of {group}")
    return rows.reshape(-1, group * rows.shape[1], rows.shape[2])
