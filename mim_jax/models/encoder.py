"""What all encoders have in common: any image size that the patch divides, and feature maps.

Parameters are stored for one size. At another one, positions and relative position tables are resized as torch's bicubic
interpolation and timm do (a = -0.75, no antialiasing); windows stay as large as they are where the map has room for them, and a
log-spaced position bias keeps the scale of the windows that it was trained in.
"""

import abc
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, Shaped

from mim_jax.targets.pixels import patchify

Params = dict[str, Any]


@partial(jax.tree_util.register_dataclass, data_fields=["features"], meta_fields=["stride"])
@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """stride: pixels of the image along a side of one of its places."""

    stride: int
    features: Float[Array, "batch rows columns channels"]


@dataclasses.dataclass(frozen=True)
class AttentionGeometry:
    """Of one block. Its attention's weights are [batch, windows, heads, prefix + tokens, prefix + tokens].

    coordinates: (row, column) of a window's tokens, in tokens. pixels: side of a token in pixels of the network's
    input. prefix: tokens before them (CLS). regions: tokens of different labels must not attend to each
    other (a shifted window's parts, or padding); None = no such labels.
    """

    coordinates: Int[np.ndarray, "tokens 2"]
    pixels: float
    prefix: int = 0
    windows: int = 1
    regions: Int[np.ndarray, "windows tokens"] | None = None


class EncoderConfig(abc.ABC):
    """Base of the encoders' configurations, which are frozen dataclasses. Parameters are those of `module`."""

    image_size: tuple[int, int]
    patch: int

    @property
    @abc.abstractmethod
    def module(self) -> nn.Module:
        """The encoder; its methods `layers` and `feature_maps` take patches [B, L, p p 3] of `image_size`."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def at_size(self, image_size: tuple[int, int]) -> Self:
        """The same network for images of (height, width) pixels.

        Raises:
            ValueError: the patch does not divide both.
        """
        if any(side < 1 or side % self.patch for side in image_size):
            height, width = image_size
            raise ValueError(
                f"images of {height}x{width} px are not multiples of the patch of {self.patch} px: pad or resize them"
            )
        return dataclasses.replace(self, image_size=tuple(image_size))  # type: ignore[type-var]

    @abc.abstractmethod
    def resize_parameter(
        self, name: str, value: Shaped[Array | np.ndarray, "..."], new: Self
    ) -> Shaped[Array | np.ndarray, "..."]:
        """A parameter of this network ("block_00/attn/...") for `new`, the same network at another size."""

    def resize(self, params: Params, new: Self) -> Params:
        """All parameters of this network for `new`, the same network at another size; those that do not depend on it are shared."""
        flat = flatten_dict(params, sep="/")
        resized: Params = unflatten_dict(
            {name: self.resize_parameter(name, value, new) for name, value in flat.items()}, sep="/"
        )
        return resized

    def layers(
        self, params: Params, images: Float[Array, "batch height width 3"]
    ) -> tuple[list[Float[Array, "batch _ _"]], Float[Array, "batch tokens dim"]]:
        """The tokens after every block, not normed, and after the final norm.

        Args:
            params: of the encoder. images: normalised, nothing hidden, of any size that the patch divides.
        """
        outputs: tuple[list[Array], Array] = self._apply(params, images, method="layers")
        return outputs

    def feature_maps(
        self, params: Params, images: Float[Array, "batch height width 3"], taps: Sequence[int]
    ) -> list[FeatureMap]:
        """Feature maps for dense tasks, in the order of `taps`; not normed, without CLS.

        Args:
            params, images: as in `layers`.
            taps: blocks of a ViT, stages of a Swin (a map before it is merged), counted from 0; negative ones from the end.
        """
        maps: list[FeatureMap] = self._apply(params, images, taps, method="feature_maps")
        return maps

    def _apply(self, params: Params, images: jax.Array, *args: Any, method: str) -> Any:
        height, width = images.shape[1:3]
        new = self.at_size((height, width))
        patches = patchify(images, self.patch)
        return new.module.apply({"params": self.resize(params, new)}, patches, *args, method=method)
