"""What a dataset holds: an image whose size is known before it is decoded, and an annotation of any kind, or none."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mim_jax.data.decode import Header, Pixels, decode, read_header

__all__ = [
    "ArrayImage",
    "ClassLabel",
    "ClassLabels",
    "EncodedImage",
    "Example",
    "Image",
    "Pixels",
    "class_index",
]

NO_LABEL = -1


class Image(Protocol):
    """Height and width in pixels, upright, known from the header; the pixels on demand."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def pixels(self) -> Pixels:
        """uint8 [height, width, 3], RGB; not to be written to. Raises BadImageError."""
        ...


@dataclass(frozen=True)
class ClassLabel:
    """One class per image: its index."""

    index: int


@dataclass(frozen=True)
class ClassLabels:
    """Several classes per image: int8 [classes], 1 = shown, 0 = not, -1 = not to be counted (VOC: only difficult objects)."""

    shown: npt.NDArray[np.int8]


class Example(NamedTuple):
    """An image and its annotation: ClassLabel, ClassLabels, a kind of your own, or None. Views give them a meaning."""

    image: Image
    annotation: Any = None

    def decoded(self) -> "Example":
        """The same with its pixels in memory, where they are looked at more than once. Raises BadImageError."""
        return self._replace(image=ArrayImage(self.image.pixels()))


class ArrayImage:
    """An image in memory."""

    def __init__(self, array: Pixels) -> None:
        self._array = array

    @property
    def height(self) -> int:
        return int(self._array.shape[0])

    @property
    def width(self) -> int:
        return int(self._array.shape[1])

    def pixels(self) -> Pixels:
        return self._array


class EncodedImage:
    """An image as a file's bytes: the header is read on creation, the pixels on demand. `where` names it in errors."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where = data, where
        self._header: Header = read_header(data, where)

    @property
    def height(self) -> int:
        return self._header.height

    @property
    def width(self) -> int:
        return self._header.width

    def pixels(self) -> Pixels:
        return decode(self._data, self._where, self._header)


def class_index(annotation: Any) -> int:
    """The class of an annotation that is a ClassLabel, else -1."""
    return annotation.index if isinstance(annotation, ClassLabel) else NO_LABEL
