"""scikit-learn's handwritten digits: 1,797 labelled scans of 8 x 8 pixels that come inside the package."""

import numpy as np

from mim_jax.data import keys
from mim_jax.data.datasets.base import ArrayDataset, check_split

TEST = 360


def open_digits(split: str) -> ArrayDataset:
    """train (1,437) or test (360); the split is fixed and stratified, so that every run of every seed is
    measured on the same digits."""
    from sklearn.datasets import load_digits

    check_split(split)
    bunch = load_digits()
    values, labels = np.asarray(bunch.images), np.asarray(bunch.target, np.int32)
    grey = np.round(values * (255 / 16)).astype(
        np.uint8
    )  # The scans count black pixels in 4 x 4 blocks: 0 to 16.
    images = np.repeat(grey[..., None], 3, axis=3)
    chosen = np.flatnonzero(_held_out(labels) == (split == "test"))
    return ArrayDataset(
        "digits",
        images[chosen],
        labels[chosen],
        [str(d) for d in range(10)],
        f"{split} split of scikit-learn's digits",
    )


def _held_out(labels: np.ndarray) -> np.ndarray:
    """bool [n], TEST of them true: of each class the same share, by largest remainder, drawn by a key that
    never changes."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * TEST / len(labels)
    take = np.floor(exact).astype(int)
    short = TEST - take.sum()
    take[np.argsort(-(exact - take), kind="stable")[:short]] += 1
    held = np.zeros(len(labels), bool)
    for one, count in zip(classes, take, strict=True):
        members = np.flatnonzero(labels == one)
        held[members[keys.permutation(len(members), 0, "digits split", int(one))[:count]]] = True
    return held
