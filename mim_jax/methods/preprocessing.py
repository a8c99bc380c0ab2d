"""How images reach a network: the crop on the host, then mirroring, colour jitter and normalisation on the device."""

import dataclasses
from collections.abc import Mapping

import jax

from mim_jax.config.schema import Augment, Config, Data
from mim_jax.corruptions.colour import jitter
from mim_jax.data import ImageView, make_crop
from mim_jax.targets.pixels import flip_where, normalise, to_unit


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Mean and spread per channel of values in [0, 1], and the augmentations of training."""

    mean: tuple[float, float, float] = Data.mean
    std: tuple[float, float, float] = Data.std
    augment: Augment = dataclasses.field(default_factory=Augment)

    @classmethod
    def from_config(cls, config: Config) -> "Preprocessing":
        return cls(config.data.mean, config.data.std, config.augment)

    def view(self, size: tuple[int, int], train: bool) -> ImageView:
        """The crop of training at `size` (height, width) pixels, or that of evaluation, which is never mirrored."""
        a = self.augment
        crop = make_crop(a.crop if train else a.eval_crop, a.scale, a.ratio)
        return ImageView(size, crop, a.flip and train, a.resample)

    def images(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The batch's images as float in [0, 1], mirrored where the batch says so, [B, H, W, 3]."""
        images = to_unit(batch["image"])
        return flip_where(images, batch["flip"]) if "flip" in batch else images

    def normalise(self, images: jax.Array) -> jax.Array:
        """Images, uint8 or in [0, 1], normalised by mean and spread."""
        return normalise(to_unit(images), self.mean, self.std)

    def network_input(self, keys: jax.Array, images: jax.Array, train: bool) -> jax.Array:
        """Images in [0, 1], after colour jitter (where training asks for it), normalised. keys: one per example, [B]."""
        strength = self.augment.jitter
        if strength and train:
            images = jax.vmap(lambda key, image: jitter(key, image, strength))(keys, images)
        return normalise(images, self.mean, self.std)


DEFAULT = Preprocessing()
"""ImageNet's mean and spread; random resized crops, mirrored."""
