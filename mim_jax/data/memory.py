"""The host memory that loading will take, computed before it is taken."""

from collections.abc import Iterator

import numpy as np

from mim_jax.data.datasets.base import Dataset
from mim_jax.data.errors import BadImageError
from mim_jax.data.examples import Image
from mim_jax.data.views import View

SAMPLED = 32
# An image in a thread: its encoded bytes, its pixels, the cut, and the 4-byte copy that PIL makes of the cut.
COPIES = 4
INDEX_BYTES = 9
"""Of index, epoch and valid, per example."""
MIB = 2**20


def budget(dataset: Dataset, view: View, host_batch: int, prefetch: int, threads: int) -> dict[str, int]:
    """Bytes by use, on one host. Decoding is estimated from the largest of 32 evenly spaced images: a far
    larger one costs its own size."""
    one = sum(spec.num_bytes for spec in view.keys.values()) + INDEX_BYTES
    images = getattr(dataset, "images", None)
    return {
        "batches": host_batch * one * (max(1, prefetch) + 3),  # Queued, being placed, two in the making.
        "decoding": threads * COPIES * _largest(dataset),
        "order": len(dataset) * 4 * 3 + len(dataset) * 16,  # Three epochs kept, one being drawn.
        "source": images.nbytes if isinstance(images, np.ndarray) else 0,
    }


def describe(held: dict[str, int]) -> str:
    """One line for the console."""
    parts = ", ".join(f"{name} {size / MIB:.1f}" for name, size in held.items())
    total = sum(held.values()) / MIB
    return f"host memory for data: about {total:.1f} MiB ({parts})"


def median_side(dataset: Dataset) -> int | None:
    """The median shorter side of 32 evenly spaced images, pixels; None where none can be read."""
    sides = [min(image.height, image.width) for image in _sample(dataset)]
    return int(np.median(sides)) if sides else None


def _largest(dataset: Dataset) -> int:
    return max((image.height * image.width * 3 for image in _sample(dataset)), default=0)


def _sample(dataset: Dataset) -> Iterator[Image]:
    for index in np.linspace(0, len(dataset) - 1, min(SAMPLED, len(dataset))).astype(int).tolist():
        try:
            yield dataset[index].image
        except BadImageError:
            continue  # It has no size; the run will meet it, where it is an error or is counted.
