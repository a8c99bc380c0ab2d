"""A few numbers of many heads (docs/papers/dark_secrets.md 2.3, 2.4), on the host in float64.

L layers, H heads of a layer. A network's stages may differ in H, so per-layer values come as sequences of arrays.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LOCAL, GLOBAL = 0.5, 0.8
"""A head is local below this share of the distance of uniform attention, and global above that one (docs/papers/dark_secrets.md 2.4)."""
LAST = 3
"""Layers that the paper calls the last ones."""


def head_values(kl: Array, *, first: bool = True) -> Array:
    """Mean KL of a head to the others, [..., H, H] to [..., H]; not a number where there is one head only.

    first: the head is the first argument of KL(. || .); the mean over heads is the same either way.
    """
    heads = kl.shape[-1]
    off = kl * (1.0 - np.eye(heads))
    return off.sum(axis=-1 if first else -2) / (heads - 1 if heads > 1 else np.nan)


def layer_value(kl: Array) -> Array:
    """Mean over ordered pairs of different heads, [..., H, H] to [...]."""
    return np.asarray(head_values(kl).mean(axis=-1))


def diversity_ratio(values: Sequence[float] | Array, last: int = LAST) -> float:
    """Mean layer value of the last layers over that of all others; not a number where there are no others.

    values: `layer_value` of each layer, [L].
    """
    known = np.asarray(values, np.float64)
    if len(known) <= last or not known[:-last].mean() > 0:
        return float("nan")
    return float(known[-last:].mean() / known[:-last].mean())


def local_share(distance: Array, uniform: float) -> float:
    """Share of a layer's heads [H] whose attention distance is below `LOCAL` of the uniform one."""
    return float(np.mean(distance < LOCAL * uniform))


def global_share(distance: Array, uniform: float) -> float:
    """Share of a layer's heads [H] whose attention distance is above `GLOBAL` of the uniform one."""
    return float(np.mean(distance > GLOBAL * uniform))


def spread(entropies: Array) -> float:
    """Largest minus smallest entropy of a layer's heads [H]."""
    return float(np.ptp(entropies))
