"""What a dataset is: examples by number, each with a size known before it is decoded."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mim_jax.data.errors import DataError
from mim_jax.data.examples import ArrayImage, ClassLabel, Example, Pixels

SPLITS = ("train", "test")


class Dataset(Protocol):
    """A finite, numbered set of examples; safe to read from several threads.

    name: as a user would give it to `open_dataset`. num_classes: 0 if unlabelled. annotation: the type of its examples'
    annotations (`mim_jax.data.examples`), None without. fingerprint: 16 hexadecimal digits that change with the content or the
    order and not with where the data lie.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def annotation(self) -> type | None: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def describe(self) -> str:
        """One line for the console."""
        ...


class ArrayDataset:
    """All images of one size, in memory: images uint8 [n, H, W, 3], labels int32 [n], -1 where there is none. Views index
    `images` directly."""

    def __init__(
        self, name: str, images: Pixels, labels: npt.NDArray[np.int32], class_names: Sequence[str], note: str
    ) -> None:
        self.name = name
        self.images = images
        self.labels = labels
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.annotation = ClassLabel if self.num_classes else None
        self.fingerprint = fingerprint([str(images.shape), *self.class_names], [images, labels])
        self._note = note

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        annotation = ClassLabel(int(self.labels[index])) if self.num_classes else None
        return Example(ArrayImage(self.images[index]), annotation)

    def describe(self) -> str:
        height, width = self.images.shape[1:3]
        size = f"{height} x {width} pixels"
        return f"{self.name}: {len(self)} images of {size}, {class_count(self.num_classes)} ({self._note})"


def class_count(classes: int) -> str:
    """How `describe` speaks of classes."""
    return f"{classes} classes" if classes else "no labels"


def fingerprint(texts: Iterable[str], arrays: Iterable[npt.NDArray[np.generic]] = ()) -> str:
    """16 hexadecimal digits of a hash of texts and of the bytes of arrays."""
    state = hashlib.blake2b(digest_size=8)
    for text in texts:
        state.update(text.encode("utf-8", "surrogateescape") + b"\0")
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def check_split(split: str) -> None:
    """Raises DataError unless split is train or test."""
    if split not in SPLITS:
        raise DataError(f"The split {split!r} is not known: use train or test.")
