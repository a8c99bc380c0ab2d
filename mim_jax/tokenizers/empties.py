"""Clusters without points: each takes half of the cluster that fits its own points worst."""

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

NUDGE = 1 / 16
"""How far the halves move apart, of the cluster's root mean square distance. Small: the border between the two is a plane
through the mean either way, and the borders to other clusters stay where they are. Not smaller: float32 must tell the
two apart."""

FloatArray = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


def fill_empty(
    centroids: FloatArray,
    counts: Counts,
    inertia: npt.NDArray[np.floating],
    signs: Callable[[int], FloatArray],
) -> tuple[FloatArray, Counts, int]:
    """Splits clusters until none is empty.

    faiss picks the cluster to split at random, in proportion to its points, and scales its centroid by 1 +- 1/1024.
    Ours is the one of largest inertia, moved by +- NUDGE along a random diagonal: a heap of equal points is never split
    (image patches have such: pure white), a centroid at 0 does move, and shifting all points shifts the result.

    Args:
        centroids: float32 [k, d], the means of the clusters.
        counts: int [k], points of each.
        inertia: [k], summed squared distances of each cluster's points to its centroid.
        signs: code -> -1.0 or 1.0 [d].
    Returns:
        centroids, counts shared out between the halves, and the number of splits. Fewer splits than empty clusters
        mean that all points are centroids already.
    """
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return centroids, counts, 0
    centroids, counts, inertia = centroids.copy(), counts.copy(), np.asarray(inertia, np.float64).copy()
    splittable = np.flatnonzero((counts >= 2) & (inertia > 0))
    heap = [(-float(inertia[code]), int(code)) for code in splittable]
    heapq.heapify(heap)
    splits = 0
    while heap and splits < len(empty):
        _, donor = heapq.heappop(heap)
        code = int(empty[splits])
        move = (NUDGE * np.sqrt(inertia[donor] / (counts[donor] * centroids.shape[1]))).astype(
            np.float32
        ) * signs(code)
        here, there = centroids[donor] - move, centroids[donor] + move
        if np.array_equal(here, there):
            continue
        centroids[donor], centroids[code] = here, there
        inertia[[donor, code]] = inertia[donor] / 2
        counts[code] = counts[donor] // 2
        counts[donor] -= counts[code]
        for half in (donor, code):
            if counts[half] >= 2:
                heapq.heappush(heap, (-float(inertia[half]), half))
        splits += 1
    return centroids, counts, splits
