"""From a name to a source."""

import functools
from collections.abc import Callable
from pathlib import Path

from mim_jax.data.datasets.arrays import open_arrays
from mim_jax.data.datasets.base import Dataset, check_split
from mim_jax.data.datasets.concat import Concat
from mim_jax.data.datasets.digits import open_digits
from mim_jax.data.datasets.folder import open_folder
from mim_jax.data.datasets.photos import Photos
from mim_jax.data.datasets.skip import Skipping
from mim_jax.data.datasets.synthetic import open_synthetic
from mim_jax.data.datasets.tfds import open_tfds
from mim_jax.data.errors import DataError

KINDS = "digits, photos, synthetic[:N[:SIZE]], arrays:PATH.npz, folder:PATH, tfds:NAME, concat:A+B"
ON_BAD_IMAGE = ("error", "skip")


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
    """Opens a source by name; see the module of each kind for what it accepts.

    Args: split: train or test, for TFDS also any split of the data set, or several joined by "+"
    (train+validation); seed: of `synthetic` only (no split depends on it); on_bad_image: error, or skip to
    replace and count; cache_dir: where listings of folders are kept, default ~/.cache/mim_jax;
    crops_per_picture: of `photos`; data_dir: of `tfds`.
    Raises DataError.
    """
    again = functools.partial(
        open_dataset,
        seed=seed,
        on_bad_image=on_bad_image,
        cache_dir=cache_dir,
        crops_per_picture=crops_per_picture,
        data_dir=data_dir,
    )
    if "+" in split:
        return Concat([again(name, one) for one in split.split("+")], name)
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
        return Concat([again(part, split) for part in parts])
    in_memory: dict[str, Callable[[], Dataset]] = {
        "digits": lambda: open_digits(split),
        "photos": lambda: Photos(split, crops_per_picture),
    }
    of_a_kind: dict[str, Callable[[], Dataset]] = {
        "synthetic": lambda: open_synthetic(rest, split, seed),
        "arrays": lambda: open_arrays(rest, split),
    }
    if opened := in_memory.get(name) or of_a_kind.get(kind):
        return opened()
    dataset: Dataset
    if kind == "folder":
        dataset = open_folder(rest, split, cache_dir)
    elif kind == "tfds":
        dataset = open_tfds(rest, split, data_dir)
    else:
        raise DataError(f"The data source {name!r} is not known: use one of {KINDS}{folder_meant(name)}.")
    return Skipping(dataset) if on_bad_image == "skip" else dataset


def folder_meant(name: str) -> str:
    """'; did you mean folder:X?' for the path of a folder."""
    return f"; did you mean folder:{name}?" if Path(name).expanduser().is_dir() else ""
