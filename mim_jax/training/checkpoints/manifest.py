"""What a checkpoint says of itself: `manifest.json`, with leaves, metrics and the checksum of every file.

It carries a checksum of its own, is written last, and only then does the step's directory get its name: a
directory with a step's name and without a good manifest has been damaged.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_jax.training.checkpoints.checksums import FileSum, first_damage

NAME = "manifest.json"
_FORMAT = 1


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
    """

    step: int
    leaves: Mapping[str, LeafSpec]
    metrics: Mapping[str, float]
    files: Mapping[str, FileSum]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(sums["size"] for sums in self.files.values())


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json and makes sure that it is on disk. Raises OSError."""
    body = dataclasses.asdict(manifest) | {"format": _FORMAT}
    with (directory / NAME).open("w") as file:
        json.dump(body | {"sha256": _digest(body)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks manifest.json itself, not the files it names. Raises DamagedError."""
    try:
        body = json.loads((directory / NAME).read_bytes())
    except OSError as error:
        raise DamagedError(f"{NAME} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DamagedError(f"{NAME} is not JSON") from error
    if not isinstance(body, dict) or body.pop("sha256", None) != _digest(body):
        raise DamagedError(f"{NAME} does not have the contents that were saved (checksum)")
    if body["format"] != _FORMAT:
        raise DamagedError(f"{NAME} has format {body['format']} and this version reads {_FORMAT}")
    leaves = {path: LeafSpec(tuple(leaf["shape"]), leaf["dtype"]) for path, leaf in body["leaves"].items()}
    return Manifest(body["step"], leaves, body["metrics"], body["files"])


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
