"""Small attention maps with known numbers (docs/papers/dark_secrets.md 3), and all metrics of a map in one compiled program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.analysis import attention_metrics as metrics
from mim_jax.models.encoder import AttentionGeometry
from mim_jax.models.windows import window_coordinates


class Numbers(NamedTuple):
    """Of one block: [B, H], the last three [B, H, H]."""

    drop: np.ndarray
    renorm: np.ndarray
    entropy: np.ndarray
    entropy_patch: np.ndarray
    cross: np.ndarray
    kl: np.ndarray
    shannon: np.ndarray


_PROGRAMS: dict[Any, Callable[[Any], Numbers]] = {}


def numbers(log_weights: np.ndarray, where: AttentionGeometry) -> Numbers:
    """All metrics."""
    regions = None if where.regions is None else where.regions.tobytes()
    key = (where.coordinates.tobytes(), where.pixels, where.prefix, where.windows, regions)

    def every(x: jax.Array) -> Numbers:
        return Numbers(
            drop=metrics.attention_distance(x, where),
            renorm=metrics.attention_distance(x, where, cls="renorm"),
            entropy=metrics.entropy(x, where),
            entropy_patch=metrics.entropy(x, where, keys="patch_renorm"),
            cross=metrics.cross_entropies(x, where),
            kl=metrics.head_kl(x, where),
            shannon=metrics.jensen_shannon(x, where),
        )

    program = _PROGRAMS.setdefault(key, jax.jit(every))
    return Numbers(*(np.asarray(leaf) for leaf in program(jnp.asarray(log_weights))))


def grid(rows: int, columns: int | None = None, *, pixels: float = 1.0, prefix: int = 0) -> AttentionGeometry:
    """All tokens of a grid in one window."""
    return AttentionGeometry(window_coordinates((rows, columns or rows)), pixels, prefix)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis; float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def family(side: int, betas: tuple[float, ...]) -> np.ndarray:
    """log softmax_k(-beta distance), a head for every beta: [1, 1, H, N, N]."""
    apart = metrics.distances(grid(side), "patch")
    return log_softmax(np.stack([-beta * apart for beta in betas]))[None, None]


def log(weights: np.ndarray) -> np.ndarray:
    """log A of weights [..., N, N] as heads of one image; minus infinity where they are 0."""
    with np.errstate(divide="ignore"):
        return np.log(weights).reshape(1, 1, -1, *weights.shape[-2:])


def uniform(side: int) -> np.ndarray:
    return log(np.full((side**2, side**2), 1.0 / side**2))


def random_log(
    seed: int, images: int, windows: int, heads: int, tokens: int, scale: float = 2.0
) -> np.ndarray:
    """Log weights of random logits."""
    logits = np.random.default_rng(seed).normal(size=(images, windows, heads, tokens, tokens)) * scale
    return log_softmax(logits)
