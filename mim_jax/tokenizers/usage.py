"""How evenly the codes of a tokenizer are used."""

import numpy as np
import numpy.typing as npt


def usage_and_perplexity(counts: npt.ArrayLike) -> tuple[float, float]:
    """The share of codes that occur at all, in [0, 1], and the perplexity exp(entropy), in [1, V].

    counts: integers [V], how often each code was given.

    Raises:
        ValueError: if no code was given at all.
    """
    counts = np.asarray(counts, np.float64)
    if not counts.sum() > 0:
        raise ValueError("no code was used, so that there is no usage to speak of")
    shares = counts[counts > 0] / counts.sum()
    return float(np.mean(counts > 0)), float(np.exp(-np.sum(shares * np.log(shares))))


def statistics(ids: npt.ArrayLike, clusters: int) -> tuple[float, float]:
    """`usage_and_perplexity` of ids, integers in [0, clusters) of any shape."""
    return usage_and_perplexity(np.bincount(np.ravel(np.asarray(ids)), minlength=clusters))
