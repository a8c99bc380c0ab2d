"""Some of a source's images, spread evenly over it: its first ones would be of its first classes."""

from mim_jax.data.sources.base import Picture, Source


class EvenSample:
    """Images 0, n/k, 2 n/k, ... of a source, as a source of k images (all of them, where it has no more)."""

    def __init__(self, source: Source, count: int) -> None:
        self._source, self._count = source, min(count, len(source))
        self.name, self.num_classes, self.class_names = source.name, source.num_classes, source.class_names
        self.multi_label = source.multi_label
        self.fingerprint = f"{source.fingerprint}-{self._count}"

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Picture:
        return self._source[index * len(self._source) // self._count]

    def describe(self) -> str:
        return f"{self._count} of {self._source.describe()}"
