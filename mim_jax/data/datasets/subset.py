"""Some of the examples of a dataset, as a dataset."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mim_jax.data.datasets.base import Dataset
from mim_jax.data.examples import ClassLabel, Example, class_index


class Subset:
    """The examples of a dataset at `chosen`, in that order. A subset of a subset is one of the whole dataset."""

    dataset: Dataset
    """The whole."""

    def __init__(self, dataset: Dataset, chosen: Sequence[int] | npt.NDArray[np.int64]) -> None:
        numbers = np.asarray(chosen, np.int64)
        if isinstance(dataset, Subset):
            numbers = dataset.numbers(numbers)
            dataset = dataset.dataset
        self.dataset, self._chosen = dataset, numbers
        self.name, self.num_classes, self.class_names = dataset.name, dataset.num_classes, dataset.class_names
        self.annotation = dataset.annotation
        self.fingerprint = f"{dataset.fingerprint}-{len(self._chosen)}"

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        return self.dataset[int(self._chosen[index])]

    def numbers(self, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """What number in the whole dataset the examples [n] of this one have, int64 [n]."""
        numbers: npt.NDArray[np.int64] = self._chosen[np.asarray(index, np.int64)]
        return numbers

    def describe(self) -> str:
        return f"{len(self)} of {self.dataset.describe()}"


def evenly_spaced(dataset: Dataset, count: int | None) -> Dataset:
    """Examples 0, n/k, 2 n/k, ... of a dataset of n, k = `count` of them; the dataset itself where it has no more, or for None."""
    if count is None or count >= len(dataset):
        return dataset
    return Subset(dataset, even_numbers(len(dataset), count))


def even_numbers(length: int, count: int) -> npt.NDArray[np.int64]:
    """At most `count` of the numbers 0..length - 1, spread evenly."""
    count = min(count, length)
    return np.arange(count, dtype=np.int64) * length // max(count, 1)


def over_classes(dataset: Dataset, count: int, candidates: int = 256) -> Dataset:
    """`count` examples of as many classes as may be: of `candidates` spread over the dataset, the first of each class, in
    their order, then the first of those left.

    Only class labels are looked at; without them the examples are spread evenly.
    """
    count = min(count, len(dataset))
    if dataset.annotation is not ClassLabel:
        return evenly_spaced(dataset, count)
    among = evenly_spaced(dataset, max(count, candidates))
    chosen: dict[int, int] = {}  # class -> its first image
    for number in range(len(among)):
        chosen.setdefault(class_index(among[number].annotation), number)
        if len(chosen) == count:
            break
    first = list(chosen.values())
    taken = set(first)
    rest = [number for number in range(len(among)) if number not in taken]
    even = [rest[i * len(rest) // max(1, count - len(first))] for i in range(count - len(first))]
    return Subset(among, sorted(first + even))
