"""Some of the images of a source, as a source."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mim_jax.data.sources.base import Picture, Source


class Subset:
    """The images of a source at `chosen`, in that order."""

    def __init__(self, source: Source, chosen: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self._source, self._chosen = source, np.asarray(chosen, np.int64)
        self.name, self.num_classes, self.class_names = source.name, source.num_classes, source.class_names
        self.multi_label = source.multi_label
        self.fingerprint = f"{source.fingerprint}-{len(self._chosen)}"

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Picture:
        return self._source[int(self._chosen[index])]

    def numbers(self, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """What number in the source the images [n] of this one have, int64 [n]."""
        found: npt.NDArray[np.int64] = self._chosen[np.asarray(index, np.int64)]
        return found

    def describe(self) -> str:
        return f"{len(self)} of {self._source.describe()}"


class EvenSample(Subset):
    """Images 0, n/k, 2 n/k, ... of a source, as a source of k images (all of them, where it has no more)."""

    def __init__(self, source: Source, count: int) -> None:
        count = min(count, len(source))
        super().__init__(source, np.arange(count, dtype=np.int64) * len(source) // max(count, 1))


def spread(source: Source, limit: int | None) -> Source:
    """At most `limit` images, spread evenly over the source; None = all."""
    return source if limit is None or limit >= len(source) else EvenSample(source, limit)


def over_classes(source: Source, count: int, candidates: int = 256) -> Subset:
    """`count` images of as many classes as may be: of `candidates` spread over the source, the first of each class, in
    their order, then the first of those left.

    Only labels are looked at, of one label an image; without labels the images are spread evenly.
    """
    count = min(count, len(source))
    among = EvenSample(source, max(count, candidates))
    if not source.num_classes or source.multi_label:
        return EvenSample(source, count)
    chosen: dict[int, int] = {}  # class -> its first image
    for number in range(len(among)):
        chosen.setdefault(among[number].label, number)
        if len(chosen) == count:
            break
    first = list(chosen.values())
    taken = set(first)
    rest = [number for number in range(len(among)) if number not in taken]
    even = [rest[i * len(rest) // max(1, count - len(first))] for i in range(count - len(first))]
    return Subset(source, among.numbers(sorted(first + even)))
