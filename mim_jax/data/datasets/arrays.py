"""Images from a numpy archive: arrays:PATH.npz.

Accepted names, the first pair found: x_train, y_train | image_train, label_train | images_train, labels_train
(and the same with _test); or one unsplit pair images, labels | image, label | x, y, of which a fixed tenth is
held out. Images are uint8 [n, H, W, 3], [n, H, W] or [n, H, W, 1]; labels, where present, integers [n], 0 and
up, -1 for none. An optional `class_names` holds texts. Objects (pickles) are never loaded.
"""

from pathlib import Path

import numpy as np

from mim_jax.data import keys
from mim_jax.data.datasets.base import ArrayDataset, check_split
from mim_jax.data.errors import DataError
from mim_jax.data.examples import NO_LABEL
from mim_jax.data.npy import Archive
from mim_jax.reading import Unreadable, check_file
from mim_jax.storage import StorageError, local_copy, parse_path

NAMES = (("x", "y"), ("image", "label"), ("images", "labels"))
TEST_SHARE = 10  # One in so many.
MOST_CLASSES = 2**20
"""Every class is a name in memory and a row of the head: a label near 2**32 is a mistake."""
LONGEST_NAME = 1000


def open_arrays(path: str, split: str) -> ArrayDataset:
    """The split of an npz file, read whole into memory. Raises DataError naming the file and the array."""
    check_split(split)
    try:
        place = parse_path(path, "the file of the source arrays")
        check_file(place)
        with local_copy(place) as here, Archive(here) as archive:
            return _read(archive, path, split)
    except StorageError as error:
        raise DataError(str(error)) from error
    except Unreadable as error:
        if error.absent:
            raise DataError(
                f"There is no file {path} for the source arrays: give the path of an .npz file."
            ) from error
        raise DataError(
            f"The file {path} is not a readable .npz archive ({error}): write it again with numpy.savez."
        ) from error


def _read(archive: Archive, path: str, split: str) -> ArrayDataset:
    for x, y in NAMES:
        if f"{x}_{split}" in archive.names:
            images = _images(_load(archive, f"{x}_{split}", path), path)
            labels = _labels(archive, f"{y}_{split}", len(images), path)
            note = f"{split} arrays of {Path(path).name}"
            break
        if x in archive.names:
            images = _images(_load(archive, x, path), path)
            labels = _labels(archive, y, len(images), path)
            chosen = _held_out(len(images), path) == (split == "test")
            images, labels = images[chosen], labels[chosen]
            note = f"{split} part of {Path(path).name}, a fixed 10 % held out for test"
            break
    else:
        raise DataError(
            f"The file {path} holds {', '.join([*archive.names, *archive.others][:5]) or 'no arrays'}, but no images for the split "
            f"{split}: "
            f"name them x_{split} and y_{split}, or images and labels."
        )
    names = _class_names(archive, labels, path)
    return ArrayDataset(f"arrays:{path}", images, labels, names, note)


def _load(archive: Archive, key: str, path: str) -> np.ndarray:
    try:
        return archive.load(key)
    except Unreadable as error:
        raise DataError(
            f"The array {key} of {path} cannot be used ({error}): save it as plain numbers with numpy.savez."
        ) from error


def _images(images: np.ndarray, path: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise DataError(
            f"The images of {path} are {images.dtype} {list(images.shape)}: save them as uint8 [n, height, "
            "width, 3] "
            "(or 1 channel, or none)."
        )
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)


def _labels(archive: Archive, key: str, length: int, path: str) -> np.ndarray:
    if key not in archive.names:
        return np.full(length, NO_LABEL, np.int32)
    labels = _whole_labels(archive, key, path)
    if labels.shape == (length, 1):  # CIFAR's usual npz.
        labels = labels[:, 0]
    if labels.shape != (length,):
        raise DataError(
            f"The labels {key} of {path} are {labels.dtype} {list(labels.shape)}: save {length} integers, "
            "0 and up, or -1 for none."
        )
    return labels.astype(np.int32)


def _whole_labels(archive: Archive, key: str, path: str) -> np.ndarray:
    labels = _load(archive, key, path)
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"The labels {key} of {path} are {labels.dtype}: save integers, 0 and up, or -1 for none."
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < NO_LABEL or high >= MOST_CLASSES:
        raise DataError(
            f"The labels {key} of {path} go from {low} to {high}: number the classes 0 and up (-1 for none); at most"
            f" {MOST_CLASSES} classes are possible."
        )
    return labels


def _class_names(archive: Archive, labels: np.ndarray, path: str) -> list[str]:
    every = [
        labels,
        *(
            _whole_labels(archive, key, path).ravel()
            for key in archive.names
            if key in {f"{y}_{s}" for _, y in NAMES for s in ("train", "test")} | {y for _, y in NAMES}
        ),
    ]
    count = max((int(part.max()) for part in every if part.size), default=NO_LABEL) + 1
    if "class_names" not in archive.names:
        return [str(number) for number in range(count)]
    array = _load(archive, "class_names", path)
    if array.ndim != 1 or array.dtype.kind not in "SU" or array.dtype.itemsize > 4 * LONGEST_NAME:
        raise DataError(
            f"The class_names of {path} are {array.dtype} {list(array.shape)}: save a list of texts of at most"
            f" {LONGEST_NAME} characters."
        )
    names = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in array]
    if len(set(names)) != len(names):
        raise DataError(
            f"The class_names of {path} name two classes alike: give every class a name of its own."
        )
    if len(names) < count:
        raise DataError(
            f"The file {path} has {len(names)} class_names but labels up to {count - 1}: give every class a "
            "name."
        )
    return names if count else []


def _held_out(length: int, path: str) -> np.ndarray:
    if length < 2:
        raise DataError(
            f"The file {path} holds one image, of which none can be held out for test: give x_train and "
            "x_test arrays."
        )
    held = np.zeros(length, bool)
    held[keys.permutation(length, 0, "arrays split")[: max(1, length // TEST_SHARE)]] = True
    return held
