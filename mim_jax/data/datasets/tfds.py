"""TFDS data sets in ArrayRecord files, read without TensorFlow: tfds:NAME, tfds:NAME/CONFIG or with :VERSION.

Images stay encoded until our own decoder reads them, so that a picture gives the same pixels from here and
from a folder.
"""

import os
from typing import Any

import numpy as np

from mim_jax.data.datasets.base import SPLITS, class_count, fingerprint
from mim_jax.data.errors import BadImageError, DataError
from mim_jax.data.examples import ClassLabel, ClassLabels, EncodedImage, Example

INFO = "dataset_info.json"


class Tfds:
    """One split of a prepared data set: `records` gives {"image": bytes, "label": int or absent} by
    number."""

    def __init__(self, name: str, builder: Any, split: str) -> None:
        info = builder.info
        self.name = f"tfds:{name}"
        self._split = split
        self._records = builder.as_data_source(split, decoders={"image": _skip()})
        one = info.features["label"] if "label" in info.features else None  # noqa: SIM401 - no dict: it has no get
        many = (
            info.features["labels"].feature
            if "label" not in info.features and "labels" in info.features
            else None
        )
        self.class_names: tuple[str, ...] = tuple(getattr(one or many, "names", None) or ())
        self.num_classes = len(self.class_names)
        kind = ClassLabel if many is None else ClassLabels
        self.annotation: type | None = kind if self.num_classes else None
        shards = info.splits[split]
        self.fingerprint = fingerprint(
            [info.full_name, split, str(list(shards.shard_lengths)), str(shards.num_bytes), *self.class_names]
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        where = f"{self.name}, split {self._split}, number {index}"
        try:
            record = self._records[index]
        except (
            RuntimeError,
            ValueError,
            OSError,
        ) as error:  # A damaged file: ArrayRecord checks its own sums.
            raise DataError(
                f"The record {where} cannot be read ({error}): prepare the data set again."
            ) from error
        if not isinstance(record["image"], bytes):
            raise BadImageError(
                where, f"its record holds {type(record['image']).__name__} and not encoded bytes"
            )
        return Example(EncodedImage(record["image"], where), self._annotation(record))

    def _annotation(self, record: Any) -> ClassLabel | ClassLabels | None:
        if self.annotation is ClassLabels:
            return self._labels(record)
        return ClassLabel(int(record["label"])) if self.num_classes else None

    def _labels(self, record: Any) -> ClassLabels:
        """Classes that are shown; those of which only difficult objects are shown do not count (VOC's rule)."""
        labels = np.zeros(self.num_classes, np.int8)
        labels[np.asarray(record["labels"], np.int64)] = 1
        if "labels_no_difficult" in record:
            easy = np.asarray(record["labels_no_difficult"], np.int64)
            labels[np.setdiff1d(record["labels"], easy).astype(np.int64)] = -1
        return ClassLabels(labels)

    def describe(self) -> str:
        classes = class_count(self.num_classes)
        return f"{self.name}: {len(self)} images, {classes} (split {self._split}, ArrayRecord)"


def open_tfds(name: str, split: str, data_dir: str | None = None) -> Tfds:
    """A split of a prepared data set below `data_dir` (default: $TFDS_DATA_DIR, else
    ~/tensorflow_datasets).

    test is the data set's `test`, or its `validation` where there is no test or test has no labels
    (imagenet2012); any other split is the data set's own of that name.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"The source tfds:{name} needs the package tensorflow-datasets, which does not import ({error}): "
            "pip install tensorflow-datasets array-record importlib_resources."
        ) from error
    if "://" in (data_dir or os.environ.get("TFDS_DATA_DIR") or ""):
        raise DataError(
            f"The data sets in {data_dir or os.environ['TFDS_DATA_DIR']} are packed in ArrayRecord files, which are read from a disk:"
            " copy them to this machine, or mount the bucket."
        )
    base = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    builder = tfds.builder_from_directory(_prepared(name, base))
    if builder.info.file_format is None or builder.info.file_format.value != "array_record":
        kind = getattr(builder.info.file_format, "value", "unknown")
        raise DataError(
            f"The data set {builder.data_dir} is prepared in the format {kind}, which needs TensorFlow to "
            f"read: {_command(name, base)}"
        )
    if "image" not in builder.info.features:
        raise DataError(
            f"The data set tfds:{name} has no feature named image, only {', '.join(builder.info.features)}: "
            "use one that has."
        )
    available = [key for key, value in builder.info.splits.items() if value.num_examples]
    wanted = _split_of(builder, split, available)
    if wanted is None:
        raise DataError(
            f"The data set tfds:{name} has the splits {', '.join(available) or '(none)'}, but none for "
            f"{split}: use another split or data set."
        )
    for path in builder.info.splits[wanted].filepaths:
        if not os.path.isfile(path):
            raise DataError(f"The file {path} of the data set tfds:{name} is missing: {_command(name, base)}")
    return Tfds(name, builder, wanted)


def _split_of(builder: Any, split: str, available: list[str]) -> str | None:
    if split not in SPLITS or split == "train":
        return split if split in available else None
    if "test" in available and "validation" in available and "label" in builder.info.features:
        first = builder.as_data_source("test", decoders={"image": _skip()})[0]
        return "validation" if int(first["label"]) < 0 else "test"
    return next((one for one in ("test", "validation") if one in available), None)


def _skip() -> Any:
    import tensorflow_datasets as tfds

    return tfds.decode.SkipDecoding()


def _prepared(name: str, base: str) -> str:
    """The directory of the newest prepared version. Raises DataError saying what was found, what is missing,
    and the command."""
    path, _, version = name.partition(":")
    top = os.path.join(base, *path.split("/"))
    found = _versions(top)
    if version in found or (found and not version):
        return os.path.join(top, version or found[-1])
    state = _state(path, version, base, found)
    raise DataError(f"The data set tfds:{name} is not prepared: {state}: {_command(name, base)}")


def _state(path: str, version: str, base: str, found: list[str]) -> str:
    """What there is instead of the data set."""
    top = os.path.join(base, *path.split("/"))
    if found:
        return f"{top} holds the versions {', '.join(found)}, but not {version}"
    if os.path.isdir(top):
        configs = [one for one in _folders(top) if _versions(os.path.join(top, one))]
        if configs:
            return f"{top} holds the configs {', '.join(configs)}; name one, as tfds:{path}/{configs[0]}"
        return f"{top} exists but holds no prepared version ({INFO} is missing)"
    if os.path.isdir(base):
        others = [one for one in _folders(base) if one != "downloads"]
        return f"{base} holds {', '.join(others) or 'nothing'}, but no {path}"
    return f"there is no folder {base}"


def _versions(top: str) -> list[str]:
    """Prepared versions below `top`, the newest last."""
    return sorted(
        (one for one in _folders(top) if os.path.isfile(os.path.join(top, one, INFO))), key=_version_key
    )


def _folders(path: str) -> list[str]:
    return (
        sorted(entry for entry in os.listdir(path) if os.path.isdir(os.path.join(path, entry)))
        if os.path.isdir(path)
        else []
    )


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in version.split("."))


def _command(name: str, base: str) -> str:
    return (
        'prepare it with python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{base}', file_format='array_record').download_and_prepare()\" "
        "(where that asks for TensorFlow, install it for the preparation only), or set data_dir."
    )
