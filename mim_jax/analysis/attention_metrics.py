"""What one block's attention looks like: distance, entropy, and how much its heads differ (docs/papers/dark_secrets.md 2.1-2.3).

Every function takes `log_weights`, float [B, windows, heads, N, N] (query before key): the log softmax that the block used,
never log(weights + eps); and the block's `AttentionGeometry`. It gives one value per image, so that callers can
sum over images in float64. A mean over queries is over the patches of an image: CLS and padding ask nothing.

Keys are the patches of the query's own region, and CLS where it is a key (entropy, KL). Pairs of different regions are left
out by their labels, never by their weight: a mask is a finite number, and a large logit scale can reach over it. Padding
(label -1), which a network may attend to and which lies nowhere, is taken away before anything else: what it got goes to the
other keys.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mim_jax.models.encoder import AttentionGeometry

Array = npt.NDArray[np.float64]
Stack = TypeVar("Stack", jax.Array, npt.NDArray[np.float64])

LOWEST = -1e30
"""Stands for the log of 0: times a weight of 0 it is 0, where minus infinity would be no number."""
EPSILON = 1e-12
"""Inside the logarithm, where only weights are there (`log_from_weights`); say so beside the result."""
UNITS = ("px", "patch", "unit")
CLS = ("drop", "renorm")


def distances(geometry: AttentionGeometry, units: str = "px") -> npt.NDArray[np.float64]:
    """How far a window's tokens lie from each other, [T, T].

    units: px, of the network's input | patch, sides of a token | unit, of coordinates i / (n - 1) along each axis.
    """
    if units not in UNITS:
        raise ValueError(f"units are {', '.join(UNITS)}, not {units!r}")
    place = np.asarray(geometry.coordinates, np.float64)
    if units == "unit":
        place = place / np.maximum(place.max(axis=0) - place.min(axis=0), 1.0)
    pairwise = np.sqrt(np.sum(np.square(place[:, None] - place[None, :]), axis=-1))
    return pairwise * geometry.pixels if units == "px" else pairwise


def counted_pairs(geometry: AttentionGeometry) -> npt.NDArray[np.bool_]:
    """Which pairs (query, key) count, bool [windows, N, N]; [1, N, N] where all windows are alike."""
    prefix, tokens = geometry.prefix, len(geometry.coordinates)
    labels = np.zeros((1, tokens), np.int64) if geometry.regions is None else geometry.regions
    asks = labels >= 0  # negative: padding
    same = (labels[:, :, None] == labels[:, None, :]) & asks[:, :, None]
    pairs = np.zeros((len(labels), prefix + tokens, prefix + tokens), bool)
    pairs[:, prefix:, :prefix] = asks[:, :, None]
    pairs[:, prefix:, prefix:] = same
    return pairs


def num_queries(geometry: AttentionGeometry) -> int:
    """Of an image, over all windows."""
    pairs = counted_pairs(geometry)
    return int(pairs.any(axis=-1).sum()) * (geometry.windows // len(pairs))


def uniform_distance(geometry: AttentionGeometry, units: str = "px") -> float:
    """The distance of attention that is spread evenly over the patches that a query may attend to."""
    pairs = counted_pairs(geometry)[:, geometry.prefix :, geometry.prefix :]
    near = (pairs * distances(geometry, units)).sum(axis=-1) / np.maximum(pairs.sum(axis=-1), 1)
    return float(near[pairs.any(axis=-1)].mean())


def max_entropy(geometry: AttentionGeometry, keys: str = "all") -> float:
    """The entropy (nats) of attention that is spread evenly: mean over queries of the log of their number of keys."""
    pairs = counted_pairs(geometry)
    sizes = pairs[..., geometry.prefix if keys == "patch_renorm" else 0 :].sum(axis=-1)
    return float(np.log(sizes[pairs.any(axis=-1)]).mean())


def log_from_weights(weights: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """log(weights + epsilon), for weights whose logits are not to be had."""
    return jnp.log(weights + epsilon)


def attention_distance(
    log_weights: jax.Array, geometry: AttentionGeometry, *, cls: str = "drop", units: str = "px"
) -> jax.Array:
    """Mean over queries of sum_k A delta(q, k), [B, H]; a query's distance to itself (0) is in the sum.

    cls: drop (keys that are no patches of the query's region are left out) | renorm (and what is left sums to 1).
    """
    if cls not in CLS:
        raise ValueError(f"cls is {' or '.join(CLS)}, not {cls!r}")
    weights, _ = _masked_weights(log_weights, geometry)
    if cls == "renorm":
        weights = weights / _nonzero(_sum_over_patches(weights, geometry))[..., None]
    pairwise = np.pad(distances(geometry, units), ((geometry.prefix, 0), (geometry.prefix, 0)))
    far = jnp.matmul(
        _flatten_pairs(weights), jnp.asarray(pairwise.reshape(-1), weights.dtype), precision="highest"
    )
    return jnp.sum(far, axis=1) / num_queries(geometry)


def entropy(log_weights: jax.Array, geometry: AttentionGeometry, *, keys: str = "all") -> jax.Array:
    """Mean over queries of -sum_k A log A, nats [B, H].

    keys: all (CLS is one of them) | patch_renorm (patches only, whose weights then sum to 1).
    """
    if keys not in ("all", "patch_renorm"):
        raise ValueError(f"keys is all or patch_renorm, not {keys!r}")
    weights, log_weights = _masked_weights(log_weights, geometry)
    if keys == "all":
        return -jnp.sum(weights * log_weights, axis=(1, 3, 4)) / num_queries(geometry)
    left = _sum_over_patches(weights, geometry)
    renormalised = jnp.log(_nonzero(left)) - _sum_over_patches(weights * log_weights, geometry) / _nonzero(
        left
    )
    return jnp.sum(renormalised, axis=(1, 3)) / num_queries(geometry)


def cross_entropies(log_weights: jax.Array, geometry: AttentionGeometry) -> jax.Array:
    """Mean over queries of -sum_k A_i log A_j, nats [B, H, H]; the diagonal holds the entropies."""
    weights, log_weights = _masked_weights(log_weights, geometry)
    products = jnp.einsum(
        "bwip,bwjp->bwij", _flatten_pairs(weights), _flatten_pairs(log_weights), precision="highest"
    )
    return -jnp.sum(products, axis=1) / num_queries(geometry)


def head_kl(log_weights: jax.Array, geometry: AttentionGeometry) -> jax.Array:
    """Mean over queries of KL(head i || head j), nats [B, H, H]."""
    return kl_from_cross_entropies(cross_entropies(log_weights, geometry))


def kl_from_cross_entropies(cross: Stack) -> Stack:
    """KL [..., H, H] of cross-entropies [..., H, H]: means of these over images give the mean KL.

    Where two heads are alike rounding leaves about -1e-6; a divergence is not negative.
    """
    entropies = cross.diagonal(axis1=-2, axis2=-1)
    return (cross - entropies[..., :, None]).clip(0.0)


def jensen_shannon(log_weights: jax.Array, geometry: AttentionGeometry) -> jax.Array:
    """Mean over queries of the Jensen-Shannon divergence of two heads, nats [B, H, H]; at most log 2.

    It takes logarithms for every pair of heads: several times the cost of all else here.
    """
    weights, log_weights = _masked_weights(log_weights, geometry)

    def with_all(head: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, log_own = (part[:, :, None] for part in head)
        middle = jnp.logaddexp(log_own, log_weights) - jnp.log(2.0)
        both = own * (log_own - middle) + weights * (log_weights - middle)
        return 0.5 * jnp.sum(both, axis=(1, 3, 4)) / num_queries(geometry)

    rows = jax.lax.map(with_all, (jnp.moveaxis(weights, 2, 0), jnp.moveaxis(log_weights, 2, 0)))
    return jnp.moveaxis(rows, 0, 1)


def _masked_weights(log_weights: jax.Array, geometry: AttentionGeometry) -> tuple[jax.Array, jax.Array]:
    """A where a pair counts, else 0; and its logarithm, finite everywhere."""
    pairs = jnp.asarray(counted_pairs(geometry))[:, None]
    log_weights = jnp.maximum(log_weights, LOWEST)
    if geometry.regions is not None and (geometry.regions < 0).any():
        log_weights = jax.nn.log_softmax(jnp.where(pairs, log_weights, LOWEST), axis=-1)
    return jnp.where(pairs, jnp.exp(log_weights), 0.0), log_weights


def _flatten_pairs(weights: jax.Array) -> jax.Array:
    """[..., N, N] to [..., N N]: a sum over both is then one matrix product of what lies in memory, nothing is transposed."""
    return weights.reshape(*weights.shape[:-2], -1)


def _sum_over_patches(values: jax.Array, geometry: AttentionGeometry) -> jax.Array:
    """[..., N, N] to [..., N]. A product: a slice would be copied, in 20 times the time on a CPU."""
    patch = np.arange(values.shape[-1]) >= geometry.prefix
    return jnp.matmul(values, jnp.asarray(patch, values.dtype), precision="highest")


def _nonzero(sums: jax.Array) -> jax.Array:
    """Where nothing is left (the row of a token that does not ask) there is nothing to divide."""
    return jnp.where(sums > 0, sums, 1.0)


LOCAL, GLOBAL = 0.5, 0.8
"""A head is local below this share of the distance of uniform attention, and global above that one (docs/papers/dark_secrets.md 2.4)."""
NUM_LAST = 3
"""Layers that the paper calls the last ones."""


def per_head_divergence(kl: Array, *, first: bool = True) -> Array:
    """Mean KL of a head to the others, [..., H, H] to [..., H]; NaN for a single head.

    first: the head is the first argument of KL(. || .); the mean over heads is the same either way.
    """
    heads = kl.shape[-1]
    off = kl * (1.0 - np.eye(heads))
    return off.sum(axis=-1 if first else -2) / (heads - 1 if heads > 1 else np.nan)


def layer_divergence(kl: Array) -> Array:
    """Mean over ordered pairs of different heads, [..., H, H] to [...]."""
    return np.asarray(per_head_divergence(kl).mean(axis=-1))


def diversity_ratio(values: Sequence[float] | Array, last: int = NUM_LAST) -> float:
    """Mean layer value of the last layers over that of all others; NaN where there are no others.

    values: `layer_divergence` of each layer, [L].
    """
    by_layer = np.asarray(values, np.float64)
    if len(by_layer) <= last or not by_layer[:-last].mean() > 0:
        return float("nan")
    return float(by_layer[-last:].mean() / by_layer[:-last].mean())


def local_share(distance: Array, uniform: float) -> float:
    """Share of a layer's heads [H] whose attention distance is below `LOCAL` of the uniform one."""
    return float(np.mean(distance < LOCAL * uniform))


def global_share(distance: Array, uniform: float) -> float:
    """Share of a layer's heads [H] whose attention distance is above `GLOBAL` of the uniform one."""
    return float(np.mean(distance > GLOBAL * uniform))


def entropy_range(entropies: Array) -> float:
    """Largest minus smallest entropy of a layer's heads [H]."""
    return float(np.ptp(entropies))
