"""The host memory that loading will take, computed before it is taken."""

from collections.abc import Iterator

import numpy as np

from mim_jax.data.datasets.base import Dataset, Picture
from mim_jax.data.errors import BadImageError
from mim_jax.data.spec import InputSpec

SAMPLED = 32
# A picture in a thread: its encoded bytes, its pixels, the cut, and the 4-byte copy that PIL makes of the cut.
COPIES = 4
MIB = 2**20


def budget(dataset: Dataset, spec: InputSpec, host_batch: int, prefetch: int, threads: int) -> dict[str, int]:
    """Bytes by use, on one host. Decoding is estimated from the largest of 32 evenly spaced pictures: a far
    larger one costs its own size."""
    one = spec.size[0] * spec.size[1] * 3 + 64
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


def picture_side(dataset: Dataset) -> int | None:
    """The median shorter side of 32 evenly spaced pictures, pixels; None where none can be read."""
    sides = [min(picture.height, picture.width) for picture in _sample(dataset)]
    return int(np.median(sides)) if sides else None


def _largest(dataset: Dataset) -> int:
    return max((picture.height * picture.width * 3 for picture in _sample(dataset)), default=0)


def _sample(dataset: Dataset) -> Iterator[Picture]:
    for index in np.linspace(0, len(dataset) - 1, min(SAMPLED, len(dataset))).astype(int).tolist():
        try:
            yield dataset[index]
        except BadImageError:
            continue  # It has no size; the run will meet it, where it is an error or is counted.
