"""What one block's attention looks like: distance, entropy, and how much its heads differ (docs/papers/dark_secrets.md 2.1-2.3).

Every function takes `log_weights`, float [B, windows, heads, N, N] (query before key): the log softmax that the block used,
never log(weights + eps); and the block's `AttentionGeometry`. It gives one value an image, so that images can be weighed and
added up in float64 outside. A mean over queries is over the patches of an image: CLS and padding ask nothing.

Keys are the patches of the query's own region, and CLS where it is a key (entropy, KL). Pairs of different regions are left
out by their labels, never by their weight: a mask is a finite number, and a large logit scale can reach over it. Padding
(label -1), which a network may attend to and which lies nowhere, is taken away before anything else: what it got goes to the
other keys.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mim_jax.models.encoder import AttentionGeometry

Stack = TypeVar("Stack", jax.Array, npt.NDArray[np.float64])

LOWEST = -1e30
"""Stands for the log of 0: times a weight of 0 it is 0, where minus infinity would be no number."""
EPSILON = 1e-12
"""Inside the logarithm, where only weights are there (`log_of`); say so beside the result."""
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
    apart = np.sqrt(np.sum(np.square(place[:, None] - place[None, :]), axis=-1))
    return apart * geometry.pixels if units == "px" else apart


def counted(geometry: AttentionGeometry) -> npt.NDArray[np.bool_]:
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
    pairs = counted(geometry)
    return int(pairs.any(axis=-1).sum()) * (geometry.windows // len(pairs))


def uniform_distance(geometry: AttentionGeometry, units: str = "px") -> float:
    """The distance of attention that is spread evenly over the patches that a query may attend to."""
    pairs = counted(geometry)[:, geometry.prefix :, geometry.prefix :]
    near = (pairs * distances(geometry, units)).sum(axis=-1) / np.maximum(pairs.sum(axis=-1), 1)
    return float(near[pairs.any(axis=-1)].mean())


def largest_entropy(geometry: AttentionGeometry, keys: str = "all") -> float:
    """The entropy (nats) of attention that is spread evenly: mean over queries of the log of their number of keys."""
    pairs = counted(geometry)
    sizes = pairs[..., geometry.prefix if keys == "patch_renorm" else 0 :].sum(axis=-1)
    return float(np.log(sizes[pairs.any(axis=-1)]).mean())


def log_of(weights: jax.Array, epsilon: float = EPSILON) -> jax.Array:
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
    weights, _ = _given(log_weights, geometry)
    if cls == "renorm":
        weights = weights / _or_one(_sum_over_patches(weights, geometry))[..., None]
    apart = np.pad(distances(geometry, units), ((geometry.prefix, 0), (geometry.prefix, 0)))
    far = jnp.matmul(_flat(weights), jnp.asarray(apart.reshape(-1), weights.dtype), precision="highest")
    return jnp.sum(far, axis=1) / num_queries(geometry)


def entropy(log_weights: jax.Array, geometry: AttentionGeometry, *, keys: str = "all") -> jax.Array:
    """Mean over queries of -sum_k A log A, nats [B, H].

    keys: all (CLS is one of them) | patch_renorm (patches only, whose weights then sum to 1).
    """
    if keys not in ("all", "patch_renorm"):
        raise ValueError(f"keys is all or patch_renorm, not {keys!r}")
    weights, log_weights = _given(log_weights, geometry)
    if keys == "all":
        return -jnp.sum(weights * log_weights, axis=(1, 3, 4)) / num_queries(geometry)
    left = _sum_over_patches(weights, geometry)
    own = jnp.log(_or_one(left)) - _sum_over_patches(weights * log_weights, geometry) / _or_one(left)
    return jnp.sum(own, axis=(1, 3)) / num_queries(geometry)


def cross_entropies(log_weights: jax.Array, geometry: AttentionGeometry) -> jax.Array:
    """Mean over queries of -sum_k A_i log A_j, nats [B, H, H]; the diagonal holds the entropies."""
    weights, log_weights = _given(log_weights, geometry)
    products = jnp.einsum("bwip,bwjp->bwij", _flat(weights), _flat(log_weights), precision="highest")
    return -jnp.sum(products, axis=1) / num_queries(geometry)


def head_kl(log_weights: jax.Array, geometry: AttentionGeometry) -> jax.Array:
    """Mean over queries of KL(head i || head j), nats [B, H, H]."""
    return kl_of(cross_entropies(log_weights, geometry))


def kl_of(cross: Stack) -> Stack:
    """KL [..., H, H] of cross-entropies [..., H, H]: means of these over images give the mean KL.

    Where two heads are alike rounding leaves about -1e-6; a divergence is not negative.
    """
    own = cross.diagonal(axis1=-2, axis2=-1)
    return (cross - own[..., :, None]).clip(0.0)


def jensen_shannon(log_weights: jax.Array, geometry: AttentionGeometry) -> jax.Array:
    """Mean over queries of the Jensen-Shannon divergence of two heads, nats [B, H, H]; at most log 2.

    It takes logarithms for every pair of heads: several times the cost of all else here.
    """
    weights, log_weights = _given(log_weights, geometry)

    def with_all(head: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, log_own = (part[:, :, None] for part in head)
        middle = jnp.logaddexp(log_own, log_weights) - jnp.log(2.0)
        both = own * (log_own - middle) + weights * (log_weights - middle)
        return 0.5 * jnp.sum(both, axis=(1, 3, 4)) / num_queries(geometry)

    rows = jax.lax.map(with_all, (jnp.moveaxis(weights, 2, 0), jnp.moveaxis(log_weights, 2, 0)))
    return jnp.moveaxis(rows, 0, 1)


def _given(log_weights: jax.Array, geometry: AttentionGeometry) -> tuple[jax.Array, jax.Array]:
    """A where a pair counts, else 0; and its logarithm, finite everywhere."""
    pairs = jnp.asarray(counted(geometry))[:, None]
    log_weights = jnp.maximum(log_weights, LOWEST)
    if geometry.regions is not None and (geometry.regions < 0).any():
        log_weights = jax.nn.log_softmax(jnp.where(pairs, log_weights, LOWEST), axis=-1)
    return jnp.where(pairs, jnp.exp(log_weights), 0.0), log_weights


def _flat(weights: jax.Array) -> jax.Array:
    """[..., N, N] to [..., N N]: a sum over both is then one matrix product of what lies in memory, nothing is transposed."""
    return weights.reshape(*weights.shape[:-2], -1)


def _sum_over_patches(values: jax.Array, geometry: AttentionGeometry) -> jax.Array:
    """[..., N, N] to [..., N]. A product: a slice would be copied, in 20 times the time on a CPU."""
    patch = np.arange(values.shape[-1]) >= geometry.prefix
    return jnp.matmul(values, jnp.asarray(patch, values.dtype), precision="highest")


def _or_one(sums: jax.Array) -> jax.Array:
    """Where nothing is left (the row of a token that does not ask) there is nothing to divide."""
    return jnp.where(sums > 0, sums, 1.0)
