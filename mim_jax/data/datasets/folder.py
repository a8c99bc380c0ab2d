"""Own images: folder:PATH, with or without class folders, nested to any depth.

Splits. Where PATH holds a folder named for the split (train, training, train2017 | test, val, valid,
validation, test2017, val2017), that is the split; of several test folders the first that has the train
split's class folders. Else the whole of PATH (or its train folder) is divided: test is the tenth of the files
whose path hashes lowest, so that a new file moves no old one.

Labels. Where images lie in two or more immediate subfolders, and none at the top, each subfolder is a class,
in sorted order; else there are no labels. The classes of test are those of train.
"""

import errno
import hashlib
import os
import stat

import numpy as np
import numpy.typing as npt
from etils import epath

from mim_jax.data.datasets.base import check_split, class_count, fingerprint
from mim_jax.data.datasets.listing import Listing, is_directory, list_images
from mim_jax.data.errors import BadImageError, DataError
from mim_jax.data.examples import NO_LABEL, ClassLabel, EncodedImage, Example
from mim_jax.storage import StorageError, is_bucket, parse_path

SPLIT_FOLDERS = {
    "train": ("train", "training", "train2017"),
    "test": ("test", "val", "valid", "validation", "test2017", "val2017"),
}
HELD_OUT = 0.1
# What the machine does wrong, and not the picture: never skipped, or a bad minute of a network disk would
# change the data.
MACHINE_ERRORS = frozenset(
    {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.ESTALE}
)


class Folder:
    """Image files below a directory, as listed when opened."""

    def __init__(
        self,
        name: str,
        root: str,
        listing: Listing,
        *,
        chosen: npt.NDArray[np.int64],
        classes: tuple[str, ...],
        note: str,
    ) -> None:
        self.name = name
        self.class_names = tuple(readable(folder) for folder in classes)
        self.num_classes = len(classes)
        self.annotation = ClassLabel if classes else None
        if listing.skipped:
            links = (
                "1 link to a folder was"
                if listing.skipped == 1
                else f"{listing.skipped} links to folders were"
            )
            note = f"{note}; {links} not followed"
        self._root, self._files, self._chosen, self._note = root, listing.files, chosen, note
        number = {folder: label for label, folder in enumerate(classes)}
        self._labels = np.full(len(chosen), NO_LABEL, np.int32)
        texts = []
        for place, index in enumerate(chosen.tolist()):
            path = listing.files[index]
            texts.append(path)
            if classes:
                folder = path.split(os.sep, 1)[0]
                if folder not in number:
                    raise DataError(
                        f"The folder {os.path.join(root, folder)} is not one of the {len(classes)} classes "
                        "of the train split: "
                        "remove it or add it to train."
                    )
                self._labels[place] = number[folder]
        self.fingerprint = fingerprint([*classes, *texts], [listing.sizes[chosen]])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Example:
        path = os.path.join(self._root, self._files[int(self._chosen[index])])
        annotation = ClassLabel(int(self._labels[index])) if self.num_classes else None
        return Example(EncodedImage(read_bytes(path), path), annotation)

    def describe(self) -> str:
        return f"{self.name}: {len(self)} images, {class_count(self.num_classes)} ({self._note})"


def readable(name: str) -> str:
    """A file's name for people: bytes that are no UTF-8 and control characters as escapes (\\xff, \\n)."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def open_folder(path: str, split: str, cache_dir: str | None = None) -> Folder:
    """The split of a folder of images. Raises DataError, in one sentence that names the path."""
    check_split(split)
    try:
        root = os.fspath(parse_path(path, "the image folder")) if path else ""
    except StorageError as error:
        raise DataError(str(error)) from error
    if not root or not _is_folder(root):
        kind = "is a file, not a folder" if root and epath.Path(root).exists() else "does not exist"
        raise DataError(
            f"The image folder {path or '(empty path)'} {kind}: give the path of a folder of images, as "
            "folder:/path/to/images."
        )
    train = _first_folder(root, SPLIT_FOLDERS["train"])
    test = _test_folder(root, train) if train else None
    base = os.path.join(root, train) if train else root
    listing = _listed(base, cache_dir)
    classes = _classes(listing)
    name = f"folder:{readable(path)}"
    if train and test:
        if split == "train":
            every = np.arange(len(listing.files))
            return Folder(name, base, listing, chosen=every, classes=classes, note=f"split folder {train}")
        held = os.path.join(root, test)
        listing = _listed(held, cache_dir)
        # Test pictures may lie in one heap while train has classes (ImageNet's raw layout): then they have no
        # labels.
        return Folder(
            name,
            held,
            listing,
            chosen=np.arange(len(listing.files)),
            classes=classes if _classes(listing) else (),
            note=f"split folder {test}",
        )
    mask = _held_out(listing, base)
    where = f"{train} has no test or val beside it" if train else "it has no train and test or val folders"
    share = (
        "the 10 % held out by a hash of the path"
        if split == "test"
        else "without the 10 % held out by a hash of the path"
    )
    return Folder(
        name,
        base,
        listing,
        chosen=np.flatnonzero(mask == (split == "test")),
        classes=classes,
        note=f"{split}: {share}, as {where}",
    )


def read_bytes(path: str) -> bytes:
    """The bytes of a regular file. Raises BadImageError, or DataError where the machine and not the file is
    at fault."""
    if is_bucket(path):
        return _read_object(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # Opening a named pipe would wait for ever.
            raise BadImageError(path, "it is not a regular file")
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise DataError(
                f"The file {path} could not be read ({error.strerror}): check the disk or the limits of this "
                "machine and start again."
            ) from error
        broken = os.path.islink(path) and error.errno in (errno.ENOENT, errno.ELOOP)
        raise BadImageError(
            path, "it is a broken link" if broken else f"it cannot be read ({error.strerror})"
        ) from error


def _read_object(path: str) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise BadImageError(path, "it is not there any more") from error
    except OSError as error:
        raise DataError(
            f"The file {path} could not be read ({error}): check the network and start again."
        ) from error


def _is_folder(path: str) -> bool:
    return epath.Path(path).is_dir()


def _first_folder(root: str, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if _is_folder(os.path.join(root, name))), None)


def _test_folder(root: str, train: str) -> str | None:
    """ImageNet's `test` is a heap without labels and its `val` has the classes: the classes decide."""
    classes = _subfolders(os.path.join(root, train))
    present = tuple(name for name in SPLIT_FOLDERS["test"] if _is_folder(os.path.join(root, name)))
    labelled = tuple(name for name in present if classes & _subfolders(os.path.join(root, name)))
    return next(iter(labelled or present), None)


def _subfolders(path: str) -> set[str]:
    if is_bucket(path):
        return {place.name for place in epath.Path(path).iterdir() if place.name[0] != "." and place.is_dir()}
    try:
        with os.scandir(path) as entries:
            return {entry.name for entry in entries if not entry.name.startswith(".") and is_directory(entry)}
    except OSError:  # May not be read: nothing to choose by, and the listing that follows says so.
        return set()


def _listed(base: str, cache_dir: str | None) -> Listing:
    listing = list_images(base, cache_dir)
    if not len(listing.files):
        what = "holds no images" if any(True for _ in epath.Path(base).iterdir()) else "is empty"
        if listing.skipped:
            what += f" but for {listing.skipped} links to folders, which are not followed"
        raise DataError(
            f"The image folder {base} {what}: put JPEG, PNG, WebP, BMP, GIF or TIFF files in it or in its "
            "subfolders."
        )
    return listing


def _classes(listing: Listing) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for path in listing.files:
        folder, separator, _ = path.partition(os.sep)
        if not separator:
            return ()
        found[folder] = None
    return tuple(found) if len(found) >= 2 else ()


def _held_out(listing: Listing, base: str) -> npt.NDArray[np.bool_]:
    """bool [n]: hashed below a tenth; of very few files the lowest, and never all."""
    if len(listing.files) < 2:
        raise DataError(
            f"The image folder {base} holds one image, of which none can be held out for test: add images, "
            "or folders train and test."
        )
    hashes = np.array(
        [
            int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=7).digest(), "little")
            for path in listing.files
        ]
    )
    held = hashes < HELD_OUT * 2.0**56
    held[np.argmin(hashes)] = True
    held[np.argmax(hashes)] = False
    return held
