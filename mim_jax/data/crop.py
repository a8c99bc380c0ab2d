"""Which part of a picture is seen, and its resampling: boxes are drawn from sizes alone, before anything is
decoded."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mim_jax.data import keys
from mim_jax.data.errors import DataError
from mim_jax.data.spec import InputSpec, Pixels

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
        """The batch's `box`: y0, x0, height, width relative to a picture of that height and width
        (pixels)."""
        return self.y0 / height, self.x0 / width, self.height / height, self.width / width


def random_resized_box(
    draws: Sequence[float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """torchvision's RandomResizedCrop.get_params, given its randomness.

    Args: draws: 4 numbers in [0, 1) a try (area, log ratio, row, column); height, width: pixels of the
    picture.
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


def centre_square_box(height: int, width: int) -> Box:
    """The largest centred square: 375 x 500 (h, w) gives columns 62 to 437."""
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def resize_centre_geometry(
    height: int, width: int, size: tuple[int, int], fraction: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((height, width) after the resize, (top, left) of the crop in it), as torchvision's Resize and
    CenterCrop.

    Where `size` is not square the picture is resized to cover both sides.
    """
    need = [round(side / fraction) for side in size]
    if need[0] * width >= need[1] * height:
        full = (need[0], max(need[1], need[0] * width // height))
    else:
        full = (max(need[0], need[1] * height // width), need[1])
    return full, (round((full[0] - size[0]) / 2), round((full[1] - size[1]) / 2))


def box_for(spec: InputSpec, height: int, width: int, *, seed: int, draw: int, index: int) -> Box:
    """The box of one use of one example: a pure function of (spec, size of the picture, seed, draw,
    index)."""
    if spec.crop == "random_resized":
        return random_resized_box(
            keys.uniforms(4 * TRIES, seed, "crop", draw, index), height, width, spec.scale, spec.ratio
        )
    if spec.crop == "centre_square":
        return centre_square_box(height, width)
    if spec.crop == "resize_centre":
        full, (top, left) = resize_centre_geometry(height, width, spec.size, spec.crop_fraction)
        y, x = height / full[0], width / full[1]
        return Box(top * y, left * x, spec.size[0] * y, spec.size[1] * x)
    if spec.crop == "none" and (height, width) != spec.size:
        raise DataError(
            f"Example {index} has {height} x {width} pixels (h x w), but the input spec has crop=none and "
            f"size {spec.size}: "
            "choose a crop that resizes, or the data's own size."
        )
    return Box(0, 0, height, width)


def flip_for(spec: InputSpec, *, seed: int, draw: int, index: int) -> bool:
    """The mirror bit of one use of one example."""
    return spec.flip and keys.uniforms(1, seed, "flip", draw, index)[0] < 0.5


def crop_and_resize(pixels: Pixels, box: Box, size: tuple[int, int], resample: str = "bicubic") -> Pixels:
    """Cuts a box of whole pixels, then resizes the cut with PIL's antialiased filter; uint8 [H, W, 3].

    The cut comes first: PIL's own `resize(box=...)` lets the filter see pixels outside the box.
    """
    top, left, height, width = (int(value) for value in box)
    cut = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    if (height, width) == size:
        return cut
    return np.asarray(Image.fromarray(cut).resize((size[1], size[0]), FILTERS[resample]))


def render(pixels: Pixels, spec: InputSpec, box: Box) -> Pixels:
    """The view of `box` at `spec.size`: uint8 [h, w, 3] to uint8 [H, W, 3]."""
    if spec.crop != "resize_centre":
        return crop_and_resize(pixels, box, spec.size, spec.resample)
    height, width = pixels.shape[:2]
    full, (top, left) = resize_centre_geometry(height, width, spec.size, spec.crop_fraction)
    whole = crop_and_resize(pixels, Box(0, 0, height, width), full, spec.resample)
    return whole[top : top + spec.size[0], left : left + spec.size[1]]
