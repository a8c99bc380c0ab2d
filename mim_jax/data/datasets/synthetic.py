"""Procedural pictures, for benchmarks and tests: synthetic, synthetic:N or synthetic:N:SIZE.

A class is an orientation, a frequency and a colour; a picture is a grating of its class, with its own phase,
and three soft coloured blobs. Every pixel is a function of (seed, split, index), made when asked, so that a
million of them cost no memory.
"""

import math

import numpy as np

from mim_jax.data import keys
from mim_jax.data.datasets.base import check_split, fingerprint
from mim_jax.data.decode import Pixels
from mim_jax.data.errors import DataError
from mim_jax.data.examples import ArrayImage, ClassLabel, Example

CLASSES = 10
COUNT, SIZE = 1024, 64
VERSION = "1"  # Raise it when a pixel changes.


class Synthetic:
    """`count` pictures of size x size pixels; label = index % 10."""

    annotation = ClassLabel

    def __init__(self, split: str, count: int, size: int, seed: int) -> None:
        check_split(split)
        self.name = f"synthetic:{count}:{size}"
        self.class_names = tuple(f"grating {number}" for number in range(CLASSES))
        self.num_classes = CLASSES
        self.fingerprint = fingerprint([VERSION, split, str(count), str(size), str(seed)])
        self._split, self._count, self._size, self._seed = split, count, size, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._count:
            raise IndexError(index)
        label = index % CLASSES
        draws = keys.uniforms(19, self._seed, f"synthetic {self._split}", index)
        return Example(ArrayImage(_paint(self._size, label, draws)), ClassLabel(label))

    def describe(self) -> str:
        size = f"{self._size} x {self._size} pixels"
        return f"{self.name}: {self._count} procedural images of {size}, {CLASSES} classes ({self._split})"


def open_synthetic(arguments: str, split: str, seed: int) -> Synthetic:
    """Opens "", "N" or "N:SIZE"; test holds a fifth as many, from other keys."""
    parts = [part for part in arguments.split(":") if part]
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise DataError(
            f"The source synthetic:{arguments} is not understood: write synthetic, synthetic:N or "
            "synthetic:N:SIZE "
            "with positive integers."
        )
    numbers = [int(part) for part in parts]
    count, size = (numbers + [COUNT, SIZE][len(numbers) :])[:2]
    return Synthetic(split, count if split == "train" else max(1, count // 5), size, seed)


def _paint(size: int, label: int, draws: list[float]) -> Pixels:
    y, x = np.mgrid[0:size, 0:size] / size
    angle, cycles = math.pi * label / CLASSES, 2 + label % 5
    wave = 0.5 + 0.5 * np.sin(2 * math.pi * (cycles * (x * math.cos(angle) + y * math.sin(angle)) + draws[0]))
    hue = 2 * math.pi * (label / CLASSES + np.arange(3) / 3)
    image = wave[..., None] * (0.5 + 0.5 * np.cos(hue))
    for blob in range(3):
        cy, cx, spread, *colour = draws[1 + 6 * blob : 7 + 6 * blob]
        weight = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (0.01 + 0.03 * spread))[..., None]
        image = image * (1 - weight) + weight * np.asarray(colour)
    return np.asarray(np.round(image * 255), np.uint8)
