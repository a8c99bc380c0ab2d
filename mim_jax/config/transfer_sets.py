"""Classification sets for transfer, with their splits and metrics (docs/papers/dark_secrets.md 4.4: Kornblith's twelve, and iNaturalist).

| preset | images | classes | train / test images | metric |
|---|---|---|---|---|
| food101 | tfds:food101 | 101 | 75750 / 25250 | top-1 |
| cifar10, cifar100 | tfds:cifar10, tfds:cifar100 | 10, 100 | 50000 / 10000 | top-1 |
| birdsnap | folder:birdsnap | 500 | 47386 / 2443 | top-1 |
| sun397 | tfds:sun397/standard-part1-120k | 397 | 19850 / 19850 | top-1 |
| cars | tfds:cars196 | 196 | 8144 / 8041 | top-1 |
| aircraft | folder:fgvc-aircraft | 100 | 6667 / 3333 | mean per class |
| voc2007 | tfds:voc/2007 | 20, several an image | 5011 / 4952 | 11-point mAP |
| dtd | tfds:dtd | 47 | 3760 / 1880 | top-1 |
| pets | tfds:oxford_iiit_pet | 37 | 3680 / 3669 | mean per class |
| caltech101 | tfds:caltech101 | 102 | 3059 / 6085 (TFDS) | mean per class |
| flowers | tfds:oxford_flowers102 | 102 | 2040 / 6149 | mean per class |
| inat2018 | tfds:i_naturalist2018 | 8142 | 437513 / 24426 | top-1 |

TFDS has no Birdsnap and no Aircraft: those are folders with train/ and test/, each with a folder a class. The numbers of images
are those of the data sets' authors (Caltech-101: of TFDS); none of the sets was at hand here, so no run on them is published.
"""

from collections.abc import Callable
from typing import NamedTuple

import ml_collections


class TransferSet(NamedTuple):
    """Where the images are, the two splits, and whether an image may show several classes."""

    source: str
    train: str = "train"
    test: str = "test"
    several: bool = False


TRANSFER_SETS = {
    "food101": TransferSet("tfds:food101", test="validation"),
    "cifar10": TransferSet("tfds:cifar10"),
    "cifar100": TransferSet("tfds:cifar100"),
    "birdsnap": TransferSet("folder:birdsnap"),
    "sun397": TransferSet("tfds:sun397/standard-part1-120k"),
    "cars": TransferSet("tfds:cars196"),
    "aircraft": TransferSet("folder:fgvc-aircraft"),
    "voc2007": TransferSet("tfds:voc/2007", "train+validation", several=True),
    "dtd": TransferSet("tfds:dtd", "train+validation"),
    "pets": TransferSet("tfds:oxford_iiit_pet"),
    "caltech101": TransferSet("tfds:caltech101"),
    "flowers": TransferSet("tfds:oxford_flowers102", "train+validation"),
    "inat2018": TransferSet("tfds:i_naturalist2018", test="validation"),
}
"""Name of a preset -> what its data are."""


def transfer_set(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """Sets the data of a fine-tuning or probing configuration. All metrics of the table are logged for every set."""
    chosen = TRANSFER_SETS[name]
    config.data.source, config.data.split, config.data.test_split = chosen.source, chosen.train, chosen.test
    config.augment.eval_crop = "resize_centre"
    if chosen.several:  # sets of labels are not mixed
        config.method.mixup = config.method.cutmix = config.method.label_smoothing = 0.0
    return config


def transfer_sets(
    recipe: Callable[[], ml_collections.ConfigDict],
) -> dict[str, Callable[[], ml_collections.ConfigDict]]:
    """Presets for all sets of the table from one recipe."""

    def on(name: str) -> Callable[[], ml_collections.ConfigDict]:
        return lambda: transfer_set(recipe(), name)

    return {name: on(name) for name in TRANSFER_SETS}
