"""What a source is: examples by number, each with a size known before it is decoded."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mim_jax.data.decode import Header, decode, read_header
from mim_jax.data.errors import DataError
from mim_jax.data.spec import Pixels

Labels = npt.NDArray[np.int8]
SPLITS = ("train", "test")
NO_LABEL = -1


class Picture(Protocol):
    """One example: height and width in pixels, upright, known from the header; label, -1 where there is none.

    labels: of a multi-label source int8 [classes]: 1 = shown, 0 = not, -1 = not to be counted (VOC: only difficult ones).
    """

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def label(self) -> int: ...

    @property
    def labels(self) -> Labels | None: ...

    def pixels(self) -> Pixels:
        """uint8 [height, width, 3], RGB; not to be written to. Raises BadImageError."""
        ...


class Dataset(Protocol):
    """A finite, numbered set of pictures; safe to read from several threads.

    name: as a user would give it to `open_dataset`. num_classes: 0 if unlabelled. multi_label: an example may be of several
    classes, or of none. fingerprint: 16 hexadecimal digits that change with the content or the order and not with where the
    data lie.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def multi_label(self) -> bool: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Picture: ...

    def describe(self) -> str:
        """One line for the console."""
        ...


class ArrayPicture:
    """A picture already in memory."""

    def __init__(self, array: Pixels, label: int, labels: Labels | None = None) -> None:
        self._array = array
        self.label, self.labels = label, labels

    @property
    def height(self) -> int:
        return int(self._array.shape[0])

    @property
    def width(self) -> int:
        return int(self._array.shape[1])

    def pixels(self) -> Pixels:
        return self._array


class EncodedPicture:
    """A picture as a file's bytes: the header is read on creation, the pixels on demand. `where` names it in
    errors."""

    def __init__(self, data: bytes, where: str, label: int, labels: Labels | None = None) -> None:
        self._data = data
        self._where = where
        self._header: Header = read_header(data, where)
        self.label, self.labels = label, labels

    @property
    def height(self) -> int:
        return self._header.height

    @property
    def width(self) -> int:
        return self._header.width

    def pixels(self) -> Pixels:
        return decode(self._data, self._where, self._header)


class ArrayDataset:
    """All pictures of one size, in memory: images uint8 [n, H, W, 3], labels int32 [n]. The loader gathers
    from `images` directly."""

    multi_label = False

    def __init__(
        self, name: str, images: Pixels, labels: npt.NDArray[np.int32], class_names: Sequence[str], note: str
    ) -> None:
        self.name = name
        self.images = images
        self.labels = labels
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.fingerprint = fingerprint([str(images.shape), *self.class_names], [images, labels])
        self._note = note

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ArrayPicture:
        return ArrayPicture(self.images[index], int(self.labels[index]))

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
