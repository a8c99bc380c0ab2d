"""Views of the image alone."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mim_jax.data.crop import FILTERS, Crop, Size
from mim_jax.data.datasets.base import ArrayDataset, Dataset
from mim_jax.data.errors import DataError
from mim_jax.data.examples import Example
from mim_jax.data.views.base import Array, ArraySpec, ExampleKey, Index, View


@dataclass(frozen=True)
class ImageView(View):
    """A crop of the image, resized on the host; mirrored on the device.

    | key   | type               | meaning                                                                 |
    |-------|--------------------|-------------------------------------------------------------------------|
    | image | uint8 [B, H, W, 3] | RGB, cut and resized, not yet mirrored                                  |
    | box   | float32 [B, 4]     | y0, x0, height, width of the crop, relative to the upright original     |
    | flip  | bool [B]           | the device is to mirror the view left-right                             |

    size: (height, width) in pixels. flip: draw a mirror bit for each use of an example. resample: PIL's antialiased filter.
    """

    size: Size
    crop: Crop
    flip: bool = False
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise DataError(
                f"The size {self.size} of a view is not (height, width) with both at least 1 pixel: give two"
                " positive integers."
            )
        if self.resample not in FILTERS:
            raise DataError(
                f"The view's resample {self.resample!r} is not known: use one of {', '.join(FILTERS)}."
            )
        self.crop.check(self.size)

    @property
    def keys(self) -> dict[str, ArraySpec]:
        return {
            "image": ArraySpec((*self.size, 3), "uint8"),
            "box": ArraySpec((4,), "float32"),
            "flip": ArraySpec((), "bool"),
        }

    @property
    def random(self) -> bool:
        return self.flip or self.crop.random

    def render(self, example: Example, key: ExampleKey) -> dict[str, Any]:
        height, width = example.image.height, example.image.width
        box = self.crop.box(height, width, self.size, key)
        return {
            "image": self.crop.render(example.image.pixels(), box, self.size, self.resample),
            "box": box.normalised(height, width),
            "flip": self._flip(key),
        }

    def render_batch(
        self, dataset: Dataset, index: Index, epoch: Index, seed: int
    ) -> dict[str, Array] | None:
        """One indexing of an array, where the dataset is one of images of this very size."""
        if not isinstance(dataset, ArrayDataset):
            return None
        if not self.crop.keeps((dataset.images.shape[1], dataset.images.shape[2]), self.size):
            return None
        uses = zip(index.tolist(), epoch.tolist(), strict=True)
        return {
            "image": np.take(dataset.images, index, axis=0),
            "box": np.tile(np.array([0, 0, 1, 1], np.float32), (len(index), 1)),
            "flip": np.array([self._flip(ExampleKey(seed, e, i)) for i, e in uses], bool)
            if self.flip
            else np.zeros(len(index), bool),
        }

    def _flip(self, key: ExampleKey) -> bool:
        return self.flip and key.uniforms(1, "flip")[0] < 0.5


@dataclass(frozen=True)
class SecondSizeView(View):
    """An image view, and the same crop at another size (a frozen network's) under a key of its own, uint8 [B, h, w, 3]."""

    image: ImageView
    key: str
    size: Size
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        replace(self.image, size=self.size, resample=self.resample)  # raises where such a view cannot be

    @property
    def keys(self) -> dict[str, ArraySpec]:
        return self.image.keys | {self.key: ArraySpec((*self.size, 3), "uint8")}

    @property
    def random(self) -> bool:
        return self.image.random

    def render(self, example: Example, key: ExampleKey) -> dict[str, Any]:
        example = example.decoded()
        image, crop = example.image, self.image.crop
        box = crop.box(image.height, image.width, self.image.size, key)
        second = crop.render(image.pixels(), box, self.size, self.resample)
        return self.image.render(example, key) | {self.key: second}
