"""Where the presets of different config files agree: the data, and the network's size for them.

Each function edits a configuration and gives it back. The small sets have their pictures cut into 8 x 8 patches, so that one
recipe fits them all.
"""

from collections.abc import Callable
from typing import NamedTuple

import ml_collections

Make = Callable[[], ml_collections.ConfigDict]
Colour = tuple[float, float, float]


class SmallSet(NamedTuple):
    """A set of small pictures: where it is, its size and patch in pixels, mean and standard deviation of its colours."""

    source: str
    size: int
    patch: int
    mean: Colour
    std: Colour


SMALL_SETS = {
    "cifar10": SmallSet("tfds:cifar10", 32, 4, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": SmallSet("tfds:cifar100", 32, 4, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": SmallSet("tfds:stl10", 96, 12, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's
    "tiny_imagenet": SmallSet(
        "folder:tiny-imagenet-200", 64, 8, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
    ),
}
"""Name of a preset -> what its data are."""


def small_set(config: ml_collections.ConfigDict, name: str = "cifar10") -> ml_collections.ConfigDict:
    """ViT-Ti on one of the small sets."""
    data = SMALL_SETS[name]
    config.data.source, config.data.mean, config.data.std = data.source, data.mean, data.std
    config.model.variant = "ti"
    config.model.image_size, config.model.patch = data.size, data.patch
    return config


def small_sets(cifar10: Make) -> dict[str, Make]:
    """Presets for all small sets from the recipe for CIFAR-10."""

    def on(name: str) -> Make:
        return lambda: small_set(cifar10(), name)

    return {name: on(name) for name in SMALL_SETS}


def imagenet(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """ViT-B/16 (by default) on ImageNet-1k at 224 px, and how often a run of that length evaluates, logs and saves."""
    config.data.source = "tfds:imagenet2012"
    config.model.variant = "b"
    config.eval.every_steps = 12500
    config.log.every_steps = 50
    config.checkpoint.every_steps = 2500
    return config


def photographs(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Random crops of ten photographs at 32 px, held out to the right of each; a small network."""
    config.data.source = "photos"
    config.data.crops_per_picture = 256
    config.augment.scale = (0.05, 0.4)
    config.augment.eval_crop = "random_resized"
    config.eval.knn = False  # the label is the number of the photograph
    config.eval.heldout_examples = 512
    config.optim.lr = 1.5e-3
    config.schedule.warmup_epochs = 1.0
    return _nano(config)


def digits(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """scikit-learn's digits at 32 px, not mirrored; a small network."""
    config.data.source = "digits"
    config.data.mean = (0.31, 0.31, 0.31)
    config.data.std = (0.38, 0.38, 0.38)
    config.augment.scale = (0.6, 1.0)
    config.augment.flip = False
    return _nano(config)


def own(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A folder of the user's own, --config.data.source=folder:PATH: network, image size and batch follow from it (scaling.py)."""
    config.data.source = "folder:"
    config.data.fit_batch = True
    config.model.variant = "auto"
    config.model.drop_path = 0.0
    config.optim.lr = 1e-3
    config.schedule.epochs = 100.0
    config.schedule.warmup_epochs = None
    return config


def _nano(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.data.batch_size = 64
    config.model.variant = "nano"
    config.model.image_size, config.model.patch = 32, 4
    config.model.drop_path = 0.0
    return config
