"""Some of the images of a source, as a source."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mim_jax.data.datasets.base import Dataset, Picture


class Subset:
    """The images of a source at `chosen`, in that order."""

    def __init__(self, dataset: Dataset, chosen: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self._dataset, self._chosen = dataset, np.asarray(chosen, np.int64)
        self.name, self.num_classes, self.class_names = dataset.name, dataset.num_classes, dataset.class_names
        self.multi_label = dataset.multi_label
        self.fingerprint = f"{dataset.fingerprint}-{len(self._chosen)}"

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Picture:
        return self._dataset[int(self._chosen[index])]

    def numbers(self, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """What number in the source the images [n] of this one have, int64 [n]."""
        found: npt.NDArray[np.int64] = self._chosen[np.asarray(index, np.int64)]
        return found

    def describe(self) -> str:
        return f"{len(self)} of {self._dataset.describe()}"


class EvenSample(Subset):
    """Images 0, n/k, 2 n/k, ... of a source, as a source of k images (all of them, where it has no more)."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        count = min(count, len(dataset))
        super().__init__(dataset, np.arange(count, dtype=np.int64) * len(dataset) // max(count, 1))


def spread(dataset: Dataset, limit: int | None) -> Dataset:
    """At most `limit` images, spread evenly over the source; None = all."""
    return dataset if limit is None or limit >= len(dataset) else EvenSample(dataset, limit)


def over_classes(dataset: Dataset, count: int, candidates: int = 256) -> Subset:
    """`count` images of as many classes as may be: of `candidates` spread over the source, the first of each class, in
    their order, then the first of those left.

    Only labels are looked at, of one label an image; without labels the images are spread evenly.
    """
    count = min(count, len(dataset))
    among = EvenSample(dataset, max(count, candidates))
    if not dataset.num_classes or dataset.multi_label:
        return EvenSample(dataset, count)
    chosen: dict[int, int] = {}  # class -> its first image
    for number in range(len(among)):
        chosen.setdefault(among[number].label, number)
        if len(chosen) == count:
            break
    first = list(chosen.values())
    taken = set(first)
    rest = [number for number in range(len(among)) if number not in taken]
    even = [rest[i * len(rest) // max(1, count - len(first))] for i in range(count - len(first))]
    return Subset(dataset, among.numbers(sorted(first + even)))
