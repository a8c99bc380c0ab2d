"""From a name to a dataset."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mim_jax.data.datasets.arrays import open_arrays
from mim_jax.data.datasets.base import Dataset, check_split
from mim_jax.data.datasets.concat import ConcatDataset
from mim_jax.data.datasets.digits import open_digits
from mim_jax.data.datasets.folder import open_folder
from mim_jax.data.datasets.photos import Photos
from mim_jax.data.datasets.replace_bad import BadImagesReplaced
from mim_jax.data.datasets.synthetic import open_synthetic
from mim_jax.data.datasets.tfds import open_tfds
from mim_jax.data.errors import DataError

ON_BAD_IMAGE = ("error", "skip")


class OpenArguments(NamedTuple):
    """What an opener is given: the name after its kind and colon, and the settings of the section `data`."""

    rest: str
    split: str
    seed: int
    cache_dir: str | None
    data_dir: str | None
    crops_per_picture: int


DATASETS: dict[str, Callable[[OpenArguments], Dataset]] = {
    "digits": lambda a: open_digits(a.split),
    "photos": lambda a: Photos(a.split, a.crops_per_picture),
    "synthetic": lambda a: open_synthetic(a.rest, a.split, a.seed),
    "arrays": lambda a: open_arrays(a.rest, a.split),
    "folder": lambda a: open_folder(a.rest, a.split, a.cache_dir),
    "tfds": lambda a: open_tfds(a.rest, a.split, a.data_dir),
}
"""Kind -> what opens it. A dataset of your own: `register_dataset`, called where your configuration file is loaded."""
SHIPPED = frozenset({*DATASETS, "concat"})
FORMS = [
    "digits",
    "photos",
    "synthetic[:N[:SIZE]]",
    "arrays:PATH.npz",
    "folder:PATH",
    "tfds:NAME",
    "concat:A+B",
]
"""How each is written, for people."""
WITHOUT_NAME = ("digits", "photos")
ALWAYS_GOOD = ("digits", "photos", "synthetic", "arrays")
"""Kinds whose images are in memory, and cannot turn out to be damaged."""


def register_dataset(kind: str, form: str, open_: Callable[[OpenArguments], Dataset]) -> None:
    """Makes `config.data.source=kind:...` open a dataset of yours. form: how it is written, for people ("npy:PATH")."""
    if kind in SHIPPED:
        raise ValueError(f"mim_jax has a kind {kind} of its own")
    DATASETS[kind] = open_
    if form not in FORMS:
        FORMS.append(form)


def open_dataset(
    name: str,
    split: str,
    *,
    seed: int = 0,
    on_bad_image: str = "error",
    cache_dir: str | None = None,
    crops_per_picture: int = 64,
    data_dir: str | None = None,
) -> Dataset:
    """Opens a dataset by name; see the module of each kind for what it accepts.

    Args: split: train or test, for TFDS also any split of the data set, or several joined by "+"
    (train+validation); seed: of `synthetic` only (no split depends on it); on_bad_image: error, or skip to
    replace and count; cache_dir: where listings of folders are kept, default ~/.cache/mim_jax;
    crops_per_picture: of `photos`; data_dir: of `tfds`.
    Raises DataError.
    """
    open_part = functools.partial(
        open_dataset,
        seed=seed,
        on_bad_image=on_bad_image,
        cache_dir=cache_dir,
        crops_per_picture=crops_per_picture,
        data_dir=data_dir,
    )
    if "+" in split:
        return ConcatDataset([open_part(name, one) for one in split.split("+")], name)
    kind, _, rest = name.partition(":")
    if kind != "tfds":
        check_split(split)
    if on_bad_image not in ON_BAD_IMAGE:
        raise DataError(
            f"The setting config.data.on_bad_image={on_bad_image!r} is not known: use error or skip."
        )
    if kind == "concat":
        parts = [part for part in rest.split("+") if part]
        if not parts:
            raise DataError(f"The source {name!r} joins nothing: write concat:A+B with the names of sources.")
        return ConcatDataset([open_part(part, split) for part in parts])
    if kind not in DATASETS or (kind in WITHOUT_NAME and kind != name):
        raise DataError(
            f"The data source {name!r} is not known: use one of {', '.join(FORMS)}{folder_meant(name)}."
        )
    dataset = DATASETS[kind](OpenArguments(rest, split, seed, cache_dir, data_dir, crops_per_picture))
    return BadImagesReplaced(dataset) if on_bad_image == "skip" and kind not in ALWAYS_GOOD else dataset


def folder_meant(name: str) -> str:
    """'; did you mean folder:X?' for the path of a folder."""
    return f"; did you mean folder:{name}?" if Path(name).expanduser().is_dir() else ""
