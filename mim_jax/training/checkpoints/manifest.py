"""What a checkpoint says of itself: `manifest.json`, with leaves, metrics and the checksum of every file.

It carries a checksum of its own, is written last, and only then does the step's directory get its name: a
directory with a step's name and without a good manifest has been damaged.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import ml_dtypes  # noqa: F401 (numpy knows bfloat16 by it)
import numpy as np
from etils.epath import Path

from mim_jax.reading import Unreadable, listed, mapping, number, parse_json, read_bytes, record, text, whole
from mim_jax.storage import write_json
from mim_jax.training.checkpoints.checksums import FileSum, first_damage

NAME = "manifest.json"
_FORMAT = 1
_MOST = 256 << 20
"""Bytes: some hundred for each leaf and file."""
_BODY = record(
    {
        "step": whole(0, 2**53),
        "leaves": mapping(record({"shape": listed(whole(0, 2**40), longest=32), "dtype": text(64)})),
        "metrics": mapping(number()),
        "files": mapping(record({"size": whole(0), "sha256": text(64)})),
    },
    {"about": record({}, {"config": mapping()})},
)


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or used: one sentence with what, where and what to do."""


class DamagedError(Exception):
    """A checkpoint is not what was saved. The message is the reason, without the checkpoint's name."""


def first_line(error: BaseException) -> str:
    """Another library's error inside one sentence: its type and the first line of its message."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """Shape and dtype name of one array ("float32", "bfloat16", "key<fry>")."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    Attributes:
      step: the training step.
      leaves: by path ("params/encoder/kernel"), every leaf of the saved tree.
      metrics: the metrics given to the save.
      files: by name relative to the checkpoint's directory, every file but the manifest.
      about: what the run says of itself, as JSON: its configuration, by which a resumed run is known to be the same.
    """

    step: int
    leaves: Mapping[str, LeafSpec]
    metrics: Mapping[str, float]
    files: Mapping[str, FileSum]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(sums["size"] for sums in self.files.values())


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json and makes sure that it is on disk. Raises StorageError."""
    body = dataclasses.asdict(manifest) | {"format": _FORMAT}
    write_json(directory / NAME, body | {"sha256": _digest(body)})


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks manifest.json itself, not the files it names. Raises DamagedError."""
    try:
        # Metrics may be anything that was measured, also not a number.
        body = parse_json(read_bytes(directory / NAME, _MOST), mapping(), finite=False)
        if body.pop("sha256", None) != _digest(body):
            raise DamagedError(f"{NAME} does not have the contents that were saved (checksum)")
        if body.get("format") != _FORMAT:
            raise DamagedError(f"{NAME} has format {body.get('format')!r} and this version reads {_FORMAT}")
        body = _BODY(body, "it")
    except Unreadable as error:
        raise DamagedError(f"{NAME} cannot be read ({error})") from error
    _check_names(directory, body)
    leaves = {path: LeafSpec(tuple(leaf["shape"]), leaf["dtype"]) for path, leaf in body["leaves"].items()}
    return Manifest(body["step"], leaves, body["metrics"], body["files"], body.get("about", {}))


def _check_names(directory: Path, body: Mapping[str, Any]) -> None:
    """Raises DamagedError where the step is another directory's, a path leads out of the directory, or a leaf lies in a leaf."""
    if not re.fullmatch(rf"0*{body['step']}(\.\d+)?", directory.name.removeprefix("unfinished-")):
        raise DamagedError(f"{NAME} is of step {body['step']}")
    for name in body["files"]:
        parts = name.split("/")
        if not name or name.startswith("/") or "\0" in name or {"..", ".", ""} & set(parts):
            raise DamagedError(f"{NAME} names the file {name!r}, which is no name in its directory")
    for name, leaf in body["leaves"].items():
        if any(str(parent) in body["leaves"] for parent in PurePosixPath(name).parents):
            raise DamagedError(f"{NAME} has the leaf {name!r} inside another leaf")
        if not leaf["dtype"].startswith("key<") and not _is_dtype(leaf["dtype"]):
            raise DamagedError(f"{NAME} has the leaf {name!r} of the unknown type {leaf['dtype']!r}")
    if any(0 not in leaf["shape"] for leaf in body["leaves"].values()) and not any(
        name.startswith("arrays/") for name in body["files"]
    ):
        raise DamagedError(f"{NAME} names no file that holds its leaves")


def _is_dtype(name: str) -> bool:
    try:
        return np.dtype(name).name == name
    except TypeError:
        return False


def verify(directory: Path) -> Manifest:
    """Reads the manifest and compares every file with it. Raises DamagedError."""
    manifest = read_manifest(directory)
    if (reason := first_damage(directory, manifest.files)) is not None:
        raise DamagedError(reason)
    return manifest


def sync_directory(directory: Path) -> None:
    """Makes names in `directory` survive a power cut: a rename is only on disk once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
