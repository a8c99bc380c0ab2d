"""Means over images of what a network attends to: a compiled forward gives a few numbers per image and block.

The weights of a block stay on the device, and are needed no longer than its own numbers take: what comes back per block is
[images, heads, heads]. One path for all encoders: their attention gives its log weights to the collection "attention". Sums
are in float64 on the host, whose memory does not grow.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mim_jax.analysis.attention_metrics import (
    NUM_LAST,
    attention_distance,
    cross_entropies,
    diversity_ratio,
    entropy,
    entropy_range,
    global_share,
    jensen_shannon,
    kl_from_cross_entropies,
    layer_divergence,
    local_share,
    max_entropy,
    per_head_divergence,
    uniform_distance,
)
from mim_jax.analysis.cka import CkaAccumulator, cka_features, gram
from mim_jax.config.check import ConfigError
from mim_jax.methods.method import Batch, Method, Variables
from mim_jax.methods.rules import name_of
from mim_jax.models.encoder import AttentionGeometry
from mim_jax.models.vit import Params

Array = npt.NDArray[np.float64]
MeasureStep = Callable[[Params, Batch], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class MeasureOptions:
    """What is measured.

    units: of distances, as in `attention_metrics.distances`. jensen_shannon: costs several times all else. features: for
    CKA, as in `cka.cka_features`; None = no CKA. group: images per Gram matrix, a divisor of the batch; 0 = the features
    themselves are returned, one row per image. embedding: CKA has the tokens before the first block as a layer, too.
    """

    units: str = "px"
    jensen_shannon: bool = False
    features: str | None = None
    group: int = 0
    embedding: bool = False


def encoder_attention(
    method: Method, params: Params, images: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Attention on images [B, H, W, 3] (as for `method.encode`), nothing masked, in evaluation mode.

    Returns:
        the tokens before the first block and after every block, [B, N, D] each; log weights of every block, float32 at
        least [B, windows, heads, N, N].
    """
    patches = method.patches(images)
    tokens, sown = method.module.apply(
        {"params": params}, patches, method=_tokens_and_layers, mutable=["attention"]
    )
    flat = jax.tree_util.tree_leaves_with_path(sown["attention"]["encoder"])
    log_weights = [leaf for _, leaf in sorted(flat, key=lambda pair: name_of(pair[0]))]
    if len(log_weights) != len(method.net.geometry):
        raise ValueError(
            f"{len(log_weights)} blocks recorded their attention, but the network has {len(method.net.geometry)}"
        )
    return tokens, log_weights


def _tokens_and_layers(module: Any, patches: jax.Array) -> list[jax.Array]:
    tokens = module.encoder.input_tokens(patches)
    return [tokens, *module.encoder.apply_blocks(tokens)]


def block_statistics(log_weights: jax.Array, geometry: Any, options: MeasureOptions) -> dict[str, jax.Array]:
    """Numbers per image of one block: [B, H]; `cross` and `jensen_shannon` [B, H, H]."""
    cross = cross_entropies(log_weights, geometry)
    numbers = {
        "distance": attention_distance(log_weights, geometry, units=options.units),
        "entropy": jnp.diagonal(cross, axis1=1, axis2=2),
        "cross": cross,
    }
    if (
        geometry.prefix or geometry.regions is not None
    ):  # else every key is a patch, and both conventions agree
        numbers |= {
            "distance_renorm": attention_distance(log_weights, geometry, cls="renorm", units=options.units),
            "entropy_patch": entropy(log_weights, geometry, keys="patch_renorm"),
        }
    if options.jensen_shannon:
        numbers["jensen_shannon"] = jensen_shannon(log_weights, geometry)
    return numbers


def make_measure_step(method: Method, options: MeasureOptions, mesh: jax.sharding.Mesh) -> MeasureStep:
    """One compiled program: (params, batch) -> numbers per image, replicated.

    blocks: `block_statistics` of every block. valid: bool [B]. grams: [groups, layers, n, n], a group being `options.group`
    consecutive images. complete: bool [groups], all images of the group are valid. rows: per layer, [B, values].
    """
    geometry, prefix = method.net.geometry, method.net.prefix

    def measure_step(params: Params, batch: Batch) -> dict[str, Any]:
        layers, log_weights = encoder_attention(method, params, batch["image"])
        blocks = [block_statistics(*block, options) for block in zip(log_weights, geometry, strict=True)]
        outputs = {"blocks": blocks, "valid": batch["valid"]}
        if options.features is not None:
            compared = layers if options.embedding else layers[1:]
            rows = [cka_features(layer, prefix, options.features) for layer in compared]
            if options.group:
                outputs["grams"] = jnp.stack(
                    [gram(_group_images(layer, options.group)) for layer in rows], axis=1
                )
                outputs["complete"] = jnp.all(batch["valid"].reshape(-1, options.group), axis=1)
            else:
                outputs["rows"] = [layer[:, 0] for layer in rows]
        return outputs

    return jax.jit(measure_step, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _group_images(rows: jax.Array, group: int) -> jax.Array:
    """[B, rows per image, p] to [groups, rows per group, p]."""
    if rows.shape[0] % group:
        raise ValueError(f"a batch of {rows.shape[0]} images cannot be cut into groups of {group}")
    return rows.reshape(-1, group * rows.shape[1], rows.shape[2])


@dataclasses.dataclass(frozen=True)
class BlockMeans:
    """Means over images of one block's numbers; H heads.

    distance, distance_renorm: [H], in `units`. entropy, entropy_patch: nats [H]. cross: nats [H, H]. jensen_shannon:
    nats [H, H], None unless requested.
    """

    geometry: AttentionGeometry
    units: str
    distance: Array
    distance_renorm: Array
    entropy: Array
    entropy_patch: Array
    cross: Array
    jensen_shannon: Array | None

    @cached_property
    def kl(self) -> Array:
        """KL(i || j), nats [H, H]."""
        return kl_from_cross_entropies(self.cross)

    @property
    def layer_kl(self) -> float:
        """Mean over ordered pairs of heads; NaN for one head."""
        return float(layer_divergence(self.kl))

    @property
    def head_kl(self) -> Array:
        """Mean KL of each head (first argument) to the others, [H]."""
        return per_head_divergence(self.kl)

    @cached_property
    def uniform(self) -> float:
        """The distance of even attention, in `units`."""
        return uniform_distance(self.geometry, self.units)

    @cached_property
    def max_entropy(self) -> float:
        """The entropy of even attention, nats."""
        return max_entropy(self.geometry)

    def distance_by(self, cls: str) -> Array:
        """The distance under a convention for CLS: drop | renorm."""
        return self.distance if cls == "drop" else self.distance_renorm


@dataclasses.dataclass(frozen=True)
class NetworkMeans:
    """Means of all blocks. cka: [L, L], None unless requested. images, cka_images: how many the means and CKA are of."""

    blocks: list[BlockMeans]
    images: int
    cka: Array | None = None
    cka_images: int = 0

    @property
    def layer_kl(self) -> Array:
        """Mean KL between heads of every layer, [L]."""
        return np.array([block.layer_kl for block in self.blocks])

    @property
    def diversity_ratio(self) -> float:
        """Mean KL of the last three layers over that of the others."""
        return diversity_ratio(self.layer_kl)

    def local_share(self, cls: str = "drop") -> Array:
        """Share of local heads of every layer, [L]."""
        return np.array([local_share(b.distance_by(cls), b.uniform) for b in self.blocks])

    def global_share(self, cls: str = "drop") -> Array:
        """Share of global heads of every layer, [L]."""
        return np.array([global_share(b.distance_by(cls), b.uniform) for b in self.blocks])

    @property
    def entropy_range(self) -> Array:
        """Largest minus smallest entropy of every layer, [L]."""
        return np.array([entropy_range(block.entropy) for block in self.blocks])


def measure(
    measure_step: MeasureStep,
    params: Params,
    batches: Iterable[Batch],
    *,
    geometry: tuple[AttentionGeometry, ...],
    units: str = "px",
) -> NetworkMeans:
    """Runs `measure_step` on all batches; padding is ignored.

    An incomplete last group of images is left out of CKA (`cka_images`).

    Raises:
        ConfigError: no images, too few for CKA, or attention that is not finite.
    """
    total: Any = None
    cka_sums = CkaAccumulator()
    images = 0
    for outputs in _dispatch_ahead(measure_step, params, batches):
        valid = np.asarray(outputs["valid"])
        images += int(valid.sum())
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64)[valid].sum(axis=0), outputs["blocks"])  # noqa: B023
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        cka_sums.add(outputs, valid)
    if not images:
        raise ConfigError("there are no images to analyse")
    means = jax.tree.map(lambda x: x / images, total)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(means)):
        raise ConfigError(
            "some attention weights are not finite numbers: the network has diverged, or its weights are damaged"
        )
    blocks = [_block_means(*block, units) for block in zip(means, geometry, strict=True)]
    return NetworkMeans(blocks, images, *cka_sums.result())


def _block_means(means: dict[str, Array], geometry: AttentionGeometry, units: str) -> BlockMeans:
    return BlockMeans(
        geometry=geometry,
        units=units,
        distance=means["distance"],
        distance_renorm=means.get("distance_renorm", means["distance"]),
        entropy=means["entropy"],
        entropy_patch=means.get("entropy_patch", means["entropy"]),
        cross=means["cross"],
        jensen_shannon=means.get("jensen_shannon"),
    )


def _dispatch_ahead(
    measure_step: MeasureStep, params: Params, batches: Iterable[Batch]
) -> Iterator[dict[str, Any]]:
    """Outputs of every batch; the next batch is computed while the caller sums one up."""
    previous: dict[str, Any] | None = None
    for batch in batches:
        current = measure_step(params, batch)
        if previous is not None:
            yield previous
        previous = current
    if previous is not None:
        yield previous


class HeadDiversity:
    """Evaluator: attention of a method's encoder on held-out images, in the view `feature_view`.

    head_kl_last3, head_kl_first: mean KL between heads (nats) of the last three layers, of the first one. diversity_ratio: of
    the last three layers to the others (left out where there are none). attention_distance_px, attention_entropy: mean over
    heads and layers (CLS dropped; nats).
    """

    name = "head_diversity"

    def __init__(
        self, method: Method, batches: Callable[[], Iterable[Batch]], *, mesh: jax.sharding.Mesh
    ) -> None:
        self._batches, self._geometry = batches, method.net.geometry
        self._measure_step = make_measure_step(method, MeasureOptions(), mesh)

    def __call__(self, variables: Variables, *, baselines: bool) -> dict[str, float]:
        """The metrics; none for networks of one head."""
        means = measure(self._measure_step, variables.params, self._batches(), geometry=self._geometry)
        return {f"eval/{name}": value for name, value in metrics(means).items() if math.isfinite(value)}


def metrics(means: NetworkMeans) -> dict[str, float]:
    """Name -> value; NaN where it does not exist."""
    return {
        "head_kl_last3": float(means.layer_kl[-NUM_LAST:].mean()),
        "head_kl_first": float(means.layer_kl[0]),
        "diversity_ratio": means.diversity_ratio,
        "attention_distance_px": float(np.mean([block.distance.mean() for block in means.blocks])),
        "attention_entropy": float(np.mean([block.entropy.mean() for block in means.blocks])),
    }
