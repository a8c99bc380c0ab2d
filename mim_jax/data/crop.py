"""Crops: which part of an image is seen, and its resampling. A box follows from sizes alone, before anything is decoded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image

from mim_jax.data import keys
from mim_jax.data.decode import Pixels
from mim_jax.data.errors import DataError

Size = tuple[int, int]
TRIES = 10  # torchvision's
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


class Box(NamedTuple):
    """A rectangle of the upright original, in pixels; whole numbers except for resize_centre."""

    y0: float
    x0: float
    height: float
    width: float

    def normalised(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The batch's `box`: y0, x0, height, width relative to an image of that height and width (pixels)."""
        return self.y0 / height, self.x0 / width, self.height / height, self.width / width


@dataclass(frozen=True)
class ExampleKey:
    """One use of one example. All host randomness is a function of it and of a purpose."""

    seed: int
    epoch: int
    index: int

    def uniforms(self, count: int, purpose: str) -> list[float]:
        """`count` float64 in [0, 1)."""
        return keys.uniforms(count, self.seed, purpose, self.epoch, self.index)


class Crop(Protocol):
    """A rule for what part of an image is seen."""

    name: ClassVar[str]
    """As a configuration gives it (`augment.crop`)."""
    random: ClassVar[bool]
    """Whether the box depends on the key."""

    def check(self, size: Size) -> None:
        """Raises DataError where a view of `size` cannot be made of any image."""
        ...

    def box(self, height: int, width: int, size: Size, key: ExampleKey) -> Box:
        """The box, in an image of height x width pixels, that becomes `size`. Raises DataError where that cannot be."""
        ...

    def render(self, pixels: Pixels, box: Box, size: Size, resample: str) -> Pixels:
        """The box at `size`: uint8 [h, w, 3] to uint8 [H, W, 3]."""
        ...

    def keeps(self, stored: Size, size: Size) -> bool:
        """Whether an image of the size `stored` is the view as it is."""
        ...


class _BoxResized:
    """A box of whole pixels, cut and resized."""

    random: ClassVar[bool] = False

    def check(self, size: Size) -> None:
        pass

    def render(self, pixels: Pixels, box: Box, size: Size, resample: str) -> Pixels:
        return crop_and_resize(pixels, box, size, resample)

    def keeps(self, stored: Size, size: Size) -> bool:
        return stored == size


@dataclass(frozen=True)
class RandomResizedCrop(_BoxResized):
    """torchvision's: `scale` is the range of the share of the area, `ratio` that of width / height."""

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    name: ClassVar[str] = "random_resized"
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(
                f"The crop scale {self.scale} is not two rising shares of the area in (0, 1]: give for"
                " example (0.2, 1.0)."
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise DataError(
                f"The crop ratio {self.ratio} is not two rising positive width/height ratios: give for"
                " example (0.75, 1.333)."
            )

    def box(self, height: int, width: int, size: Size, key: ExampleKey) -> Box:
        return random_resized_box(key.uniforms(4 * TRIES, "crop"), height, width, self.scale, self.ratio)

    def keeps(self, stored: Size, size: Size) -> bool:
        return False


@dataclass(frozen=True)
class CentreSquare(_BoxResized):
    """The largest centred square: 375 x 500 (h, w) gives columns 62 to 437."""

    name: ClassVar[str] = "centre_square"

    def check(self, size: Size) -> None:
        if size[0] != size[1]:
            raise DataError(
                f"The crop centre_square cannot fill the non-square size {size}: use resize_centre or squash."
            )

    def box(self, height: int, width: int, size: Size, key: ExampleKey) -> Box:
        side = min(height, width)
        return Box((height - side) // 2, (width - side) // 2, side, side)


@dataclass(frozen=True)
class ResizeCentre:
    """The short side to round(size / fraction), then the centre (ImageNet's usual evaluation)."""

    fraction: float = 0.875
    name: ClassVar[str] = "resize_centre"
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise DataError(f"The crop fraction {self.fraction} is not in (0, 1]: give for example 0.875.")

    def check(self, size: Size) -> None:
        pass

    def box(self, height: int, width: int, size: Size, key: ExampleKey) -> Box:
        full, (top, left) = resize_centre_geometry(height, width, size, self.fraction)
        y, x = height / full[0], width / full[1]
        return Box(top * y, left * x, size[0] * y, size[1] * x)

    def render(self, pixels: Pixels, box: Box, size: Size, resample: str) -> Pixels:
        height, width = pixels.shape[:2]
        full, (top, left) = resize_centre_geometry(height, width, size, self.fraction)
        resized = crop_and_resize(pixels, Box(0, 0, height, width), full, resample)
        return resized[top : top + size[0], left : left + size[1]]

    def keeps(self, stored: Size, size: Size) -> bool:
        return False


@dataclass(frozen=True)
class Squash(_BoxResized):
    """The whole image, resized without regard to its shape."""

    name: ClassVar[str] = "squash"

    def box(self, height: int, width: int, size: Size, key: ExampleKey) -> Box:
        return Box(0, 0, height, width)


@dataclass(frozen=True)
class NoCrop(_BoxResized):
    """The image as it is; one of another size is an error."""

    name: ClassVar[str] = "none"

    def box(self, height: int, width: int, size: Size, key: ExampleKey) -> Box:
        if (height, width) != size:
            raise DataError(
                f"Example {key.index} has {height} x {width} pixels (h x w), but the view has crop=none and"
                f" size {size}: choose a crop that resizes, or the data's own size."
            )
        return Box(0, 0, height, width)


CROPS: dict[str, type[Crop]] = {
    crop.name: crop for crop in (RandomResizedCrop, CentreSquare, ResizeCentre, Squash, NoCrop)
}
"""Name in a configuration -> rule."""


def make_crop(name: str, scale: tuple[float, float], ratio: tuple[float, float]) -> Crop:
    """The rule that a configuration names; scale and ratio are those of random_resized. Raises DataError."""
    if name not in CROPS:
        raise DataError(f"The crop {name!r} is not known: use one of {', '.join(CROPS)}.")
    return RandomResizedCrop(scale, ratio) if name == RandomResizedCrop.name else CROPS[name]()


def random_resized_box(
    draws: Sequence[float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """torchvision's RandomResizedCrop.get_params, given its randomness.

    Args: draws: 4 numbers in [0, 1) per try (area, log ratio, row, column); height, width: pixels of the image.
    Returns a box of whole pixels: the first of ten tries that fits, else the centre clamped to the ratio.
    """
    area, low, high = height * width, math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(TRIES):
        size, shape, row, column = draws[4 * attempt : 4 * attempt + 4]
        target = area * (scale[0] + (scale[1] - scale[0]) * size)
        aspect = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(row * (height - h + 1)), int(column * (width - w + 1)), h, w)
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def resize_centre_geometry(height: int, width: int, size: Size, fraction: float) -> tuple[Size, Size]:
    """((height, width) after the resize, (top, left) of the crop in it), as torchvision's Resize and CenterCrop.

    Where `size` is not square the image is resized to cover both sides.
    """
    need = [round(side / fraction) for side in size]
    if need[0] * width >= need[1] * height:
        full = (need[0], max(need[1], need[0] * width // height))
    else:
        full = (max(need[0], need[1] * height // width), need[1])
    return full, (round((full[0] - size[0]) / 2), round((full[1] - size[1]) / 2))


def crop_and_resize(pixels: Pixels, box: Box, size: Size, resample: str = "bicubic") -> Pixels:
    """Cuts a box of whole pixels, then resizes the cut with PIL's antialiased filter; uint8 [H, W, 3].

    The cut comes first: PIL's own `resize(box=...)` lets the filter see pixels outside the box.
    """
    top, left, height, width = (int(value) for value in box)
    cut = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    if (height, width) == size:
        return cut
    return np.asarray(Image.fromarray(cut).resize((size[1], size[0]), FILTERS[resample]))
