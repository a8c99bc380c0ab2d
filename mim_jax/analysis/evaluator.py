"""The diversity of heads while a network is trained: `eval/head_kl_last3` and its relatives."""

import math
from collections.abc import Callable, Iterable

import jax
import numpy as np

from mim_jax.analysis.capture import What, make_look
from mim_jax.analysis.streaming import NetworkMeans, measure
from mim_jax.analysis.summaries import LAST
from mim_jax.methods.method import Batch, Method, Variables


class HeadDiversity:
    """Attention of a method's encoder on held-out images, given in the method's `feature_spec`.

    head_kl_last3, head_kl_first: mean KL between heads (nats) of the last three layers, of the first one. diversity_ratio: of
    the last three layers to the others (left out where there are none). attention_distance_px, attention_entropy: mean over
    heads and layers (CLS dropped; nats).
    """

    name = "head_diversity"

    def __init__(
        self, method: Method, batches: Callable[[], Iterable[Batch]], *, mesh: jax.sharding.Mesh
    ) -> None:
        self._batches, self._geometry = batches, method.net.geometry
        self._look = make_look(method, What(), mesh)

    def __call__(self, variables: Variables, *, baselines: bool) -> dict[str, float]:
        """The metrics; none for networks of one head."""
        found = measure(self._look, variables.params, self._batches(), geometry=self._geometry)
        return {f"eval/{name}": value for name, value in metrics(found).items() if math.isfinite(value)}


def metrics(found: NetworkMeans) -> dict[str, float]:
    """Name -> value; not a number where a value does not exist."""
    return {
        "head_kl_last3": float(found.layer_kl[-LAST:].mean()),
        "head_kl_first": float(found.layer_kl[0]),
        "diversity_ratio": found.diversity_ratio,
        "attention_distance_px": float(np.mean([block.distance.mean() for block in found.blocks])),
        "attention_entropy": float(np.mean([block.entropy.mean() for block in found.blocks])),
    }
