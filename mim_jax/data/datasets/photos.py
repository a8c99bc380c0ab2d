"""Colour photographs that come inside scikit-image and scikit-learn: real pictures on a machine without a
network.

Each photograph counts K times (index i is photograph i // K): the crop differs because its key is the index.
Held out is a region, not a picture: train sees the left of each photograph, test the right, and no pixel is
in both.
"""

from importlib import util
from pathlib import Path

import numpy as np

from mim_jax.data.datasets.base import check_split, fingerprint
from mim_jax.data.decode import decode
from mim_jax.data.errors import DataError
from mim_jax.data.examples import ArrayImage, ClassLabel, Example

# All colour photographs on disk in the wheels of scikit-image 0.26 and scikit-learn 1.9 (most of skimage.data
# is downloaded on use, these are not). Not here: drawings, grey scans, and motorcycle_right, the other eye of
# a stereo pair, whose left part shows what motorcycle_left holds out.
PHOTOGRAPHS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
TRAIN_SHARE = 0.75  # Of the width.


class Photos:
    """The photographs' train or test regions, decoded once (16 MB)."""

    name = "photos"

    annotation = ClassLabel

    def __init__(self, split: str, crops_per_picture: int) -> None:
        check_split(split)
        if crops_per_picture < 1:
            raise DataError(
                f"The source photos cannot give {crops_per_picture} crops a picture: set crops_per_picture "
                "to 1 or more."
            )
        self._split = split
        self._crops = crops_per_picture
        self._regions = [_region(decode(path.read_bytes(), str(path)), split) for path in photograph_paths()]
        self.class_names = tuple(Path(relative).stem for _, relative in PHOTOGRAPHS)
        self.num_classes = len(self.class_names)
        self.fingerprint = fingerprint([str(crops_per_picture), *self.class_names], self._regions)

    def __len__(self) -> int:
        return len(self._regions) * self._crops

    def __getitem__(self, index: int) -> Example:
        photograph = index // self._crops
        return Example(ArrayImage(self._regions[photograph]), ClassLabel(photograph))

    def describe(self) -> str:
        side = "left 75 %" if self._split == "train" else "right 25 %"
        return (
            f"photos: {len(self)} virtual crops, {self._crops} of each of {len(self._regions)} photographs, "
            f"label = photograph ({self._split}: the {side} of each)"
        )


def photograph_paths() -> list[Path]:
    """Where the photographs lie. Raises DataError where an installed package lacks one."""
    paths = []
    for package, relative in PHOTOGRAPHS:
        found = util.find_spec(package)
        if found is None or found.origin is None:
            raise DataError(
                f"The source photos needs the package {package}, which is not installed: "
                "pip install scikit-image scikit-learn."
            )
        path = Path(found.origin).parent / relative
        if not path.is_file():
            raise DataError(
                f"The photograph {relative} is not inside the installed {package}: install scikit-image 0.26 "
                "and scikit-learn 1.9."
            )
        paths.append(path)
    return paths


def _region(pixels: np.ndarray, split: str) -> np.ndarray:
    edge = round(pixels.shape[1] * TRAIN_SHARE)
    part = pixels[:, :edge] if split == "train" else pixels[:, edge:]
    return np.ascontiguousarray(part)
