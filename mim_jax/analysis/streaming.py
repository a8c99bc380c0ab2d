"""From one batch's numbers after another to the means of a run: sums in float64 on the host, whose memory does not grow."""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from mim_jax.analysis.attention_metrics import kl_of, largest_entropy, uniform_distance
from mim_jax.analysis.capture import Look
from mim_jax.analysis.cka import aligned, cka, hsic1
from mim_jax.analysis.summaries import (
    diversity_ratio,
    global_share,
    head_values,
    layer_value,
    local_share,
    spread,
)
from mim_jax.config.check import ConfigError
from mim_jax.methods.method import Batch
from mim_jax.models.encoder import AttentionGeometry
from mim_jax.models.vit import Params

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class BlockMeans:
    """Means over images of one block's numbers; H heads.

    distance, distance_renorm: [H], in `units`. entropy, entropy_patch: nats [H]. cross: nats [H, H]. jensen_shannon:
    nats [H, H], or None where it was not asked for.
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
        return kl_of(self.cross)

    @property
    def layer_kl(self) -> float:
        """Mean over ordered pairs of heads; not a number for one head."""
        return float(layer_value(self.kl))

    @property
    def head_kl(self) -> Array:
        """Mean KL of each head (first argument) to the others, [H]."""
        return head_values(self.kl)

    @cached_property
    def uniform(self) -> float:
        """The distance of even attention, in `units`."""
        return uniform_distance(self.geometry, self.units)

    @cached_property
    def largest_entropy(self) -> float:
        """That of even attention, nats."""
        return largest_entropy(self.geometry)

    def distance_by(self, cls: str) -> Array:
        """The distance under a convention for CLS: drop | renorm."""
        return self.distance if cls == "drop" else self.distance_renorm


@dataclasses.dataclass(frozen=True)
class NetworkMeans:
    """Of all blocks; `cka` [L, L], None where it was not asked for. images: looked at; cka_images: that CKA used."""

    blocks: list[BlockMeans]
    images: int
    cka: Array | None = None
    cka_images: int = 0

    @property
    def layer_kl(self) -> Array:
        """[L]"""
        return np.array([block.layer_kl for block in self.blocks])

    @property
    def diversity_ratio(self) -> float:
        """Of the last three layers to the others."""
        return diversity_ratio(self.layer_kl)

    def local(self, cls: str = "drop") -> Array:
        """Share of local heads of every layer, [L]."""
        return np.array([local_share(b.distance_by(cls), b.uniform) for b in self.blocks])

    def everywhere(self, cls: str = "drop") -> Array:
        """Share of global heads of every layer, [L]."""
        return np.array([global_share(b.distance_by(cls), b.uniform) for b in self.blocks])

    @property
    def spread(self) -> Array:
        """Largest minus smallest entropy of every layer, [L]."""
        return np.array([spread(block.entropy) for block in self.blocks])


def measure(
    look: Look,
    params: Params,
    batches: Iterable[Batch],
    *,
    geometry: tuple[AttentionGeometry, ...],
    units: str = "px",
) -> NetworkMeans:
    """Runs `look` over all batches; padding counts for nothing.

    A last group of images that is not full is left out of CKA (`cka_images` says so).

    Raises:
        ConfigError: no images, too few for CKA, or features that are no finite numbers.
    """
    total: Any = None
    similarity = Similarity()
    images = 0
    for seen in _ahead(look, params, batches):
        valid = np.asarray(seen["valid"])
        images += int(valid.sum())
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64)[valid].sum(axis=0), seen["blocks"])  # noqa: B023
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        similarity.add(seen, valid)
    if not images:
        raise ConfigError("there are no images to look at")
    means = jax.tree.map(lambda x: x / images, total)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(means)):
        raise ConfigError(
            "some attention weights are not finite numbers: the network has diverged, or its weights are damaged"
        )
    blocks = [_block(own, where, units) for own, where in zip(means, geometry, strict=True)]
    return NetworkMeans(blocks, images, *similarity.result())


class Similarity:
    """CKA while batches come: sums of the unbiased estimate, or the features themselves for the biased one."""

    def __init__(self) -> None:
        self._criterion: Array | None = None
        self._rows: list[list[Array]] = []
        self._images = 0
        self._asked = False

    def add(self, seen: dict[str, Any], valid: npt.NDArray[np.bool_]) -> None:
        """What a look brought; nothing, where it was not asked for CKA."""
        self._asked |= "grams" in seen or "rows" in seen
        for grams, whole in zip(seen.get("grams", ()), seen.get("whole", ()), strict=True):
            if whole:
                found = hsic1(grams)
                self._criterion = found if self._criterion is None else self._criterion + found
                self._images += len(valid) // len(seen["whole"])
        if "rows" in seen:
            self._rows.append([np.asarray(layer)[valid] for layer in seen["rows"]])
            self._images += int(valid.sum())

    def result(self) -> tuple[Array | None, int]:
        """The map [L, L], or None, and how many images it is of."""
        if self._rows:
            return cka([np.concatenate(parts) for parts in zip(*self._rows, strict=True)]), self._images
        if self._asked and self._criterion is None:
            raise ConfigError("CKA compares more images at a time than there are: take a smaller number")
        return (None if self._criterion is None else aligned(self._criterion)), self._images


def _block(means: dict[str, Array], geometry: AttentionGeometry, units: str) -> BlockMeans:
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


def _ahead(look: Look, params: Params, batches: Iterable[Batch]) -> Iterator[dict[str, Any]]:
    """The numbers of every batch; the next one is computed while one is added up."""
    waiting: dict[str, Any] | None = None
    for batch in batches:
        now = look(params, batch)
        if waiting is not None:
            yield waiting
        waiting = now
    if waiting is not None:
        yield waiting
