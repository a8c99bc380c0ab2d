"""manifest.json of a checkpoint: its step, leaves and metrics, and the checksum of every file. It makes a checkpoint verifiable.

Orbax restores flipped bytes without an error, so a checkpoint is only as good as our own checksums. sha256 because processors have
instructions for it (about 2 GB/s per core), and `sha256sum` can check it by hand. The manifest has a checksum of its own and is written
before the checkpoint is committed: a committed checkpoint without a good manifest has been damaged.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, TypedDict

import ml_dtypes  # noqa: F401 (numpy knows bfloat16 by it)
import numpy as np
from etils.epath import Path

from mim_jax.errors import UserError
from mim_jax.reading import Unreadable, listed, mapping, number, parse_json, read_bytes, record, text, whole
from mim_jax.storage import is_bucket, write_json

MANIFEST = "manifest.json"
ORBAX_METADATA = "_CHECKPOINT_METADATA"
"""Orbax's own notes on a step. It rewrites them while it commits, and restoring does not read them: no checksum."""
_FORMAT = 1
_MAX_BYTES = 256 << 20
"""Of a manifest: some hundred for each leaf and file."""
_THREADS = 4
"""hashlib releases the interpreter lock, so files are hashed side by side."""
_BODY = record(
    {
        "step": whole(0, 2**53),
        "leaves": mapping(record({"shape": listed(whole(0, 2**40), longest=32), "dtype": text(64)})),
        "metrics": mapping(number()),
        "files": mapping(record({"size": whole(0), "sha256": text(64)})),
    },
    {"about": record({}, {"config": mapping()})},
)


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used: one sentence with what, where and what to do."""


class DamagedError(CheckpointError):
    """A checkpoint is not what was saved."""

    def __init__(self, directory: Path, reason: str) -> None:
        super().__init__(f"checkpoint {directory} is damaged: {reason}; use another step")
        self.directory, self.reason = directory, reason


class FileChecksum(TypedDict):
    """Size in bytes and hexadecimal sha256 of one file."""

    size: int
    sha256: str


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
      files: by name relative to the checkpoint's directory, every file but the manifest and `ORBAX_METADATA`.
      custom_metadata: JSON that the run adds: its configuration, by which a resumed run is known to be the same.
    """

    step: int
    leaves: Mapping[str, LeafSpec]
    metrics: Mapping[str, float]
    files: Mapping[str, FileChecksum]
    custom_metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(checksum["size"] for checksum in self.files.values())


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json and makes sure that it is on disk. Raises StorageError."""
    body = dataclasses.asdict(manifest) | {"format": _FORMAT}
    body["about"] = body.pop("custom_metadata")  # its name in files
    write_json(directory / MANIFEST, body | {"sha256": _digest(body)})


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks manifest.json itself, not the files it names. Raises DamagedError."""
    try:
        # Metrics may be anything that was measured, also not a number.
        body = parse_json(read_bytes(directory / MANIFEST, _MAX_BYTES), mapping(), finite=False)
        if body.pop("sha256", None) != _digest(body):
            raise DamagedError(directory, f"{MANIFEST} does not have the contents that were saved (checksum)")
        if body.get("format") != _FORMAT:
            raise DamagedError(
                directory, f"{MANIFEST} has format {body.get('format')!r} and this version reads {_FORMAT}"
            )
        body = _BODY(body, "it")
    except Unreadable as error:
        raise DamagedError(directory, f"{MANIFEST} cannot be read ({error})") from error
    _check_names(directory, body)
    leaves = {path: LeafSpec(tuple(leaf["shape"]), leaf["dtype"]) for path, leaf in body["leaves"].items()}
    return Manifest(body["step"], leaves, body["metrics"], body["files"], body.get("about", {}))


def verify(directory: Path) -> Manifest:
    """Reads the manifest and compares every file with it. Raises DamagedError."""
    try:
        manifest = read_manifest(directory)
        damage = find_damage(directory, manifest.files)
    except OSError as error:
        raise DamagedError(directory, f"it cannot be read ({error.strerror or error})") from error
    if damage is not None:
        raise DamagedError(directory, damage)
    return manifest


def compute_checksums(directory: Path) -> dict[str, FileChecksum]:
    """The checksum of every file below a directory, by its relative path with forward slashes."""
    names = sorted(name for name in _file_names(directory) if name != ORBAX_METADATA)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _checksum(directory / name), names), strict=True))


def find_damage(directory: Path, expected: Mapping[str, FileChecksum]) -> str | None:
    """Describes the first damaged file, or returns None where every expected file is what it was.

    Files that are not expected are ignored: what a file browser leaves behind does not make a checkpoint bad.
    """
    for name, checksum in expected.items():  # sizes first: they are cheap
        size = _size(directory / name)
        if size is None:
            return f"{name} is missing"
        if size != checksum["size"]:
            return f"{name} has {size} bytes instead of {checksum['size']}"
    with ThreadPoolExecutor(_THREADS) as pool:
        reasons = pool.map(lambda name: _content_damage(directory / name, expected[name]), expected)
        return next(
            (f"{name} {reason}" for name, reason in zip(expected, reasons, strict=True) if reason), None
        )


def _check_names(directory: Path, body: Mapping[str, Any]) -> None:
    """Raises DamagedError where the step is another directory's, a path leads out of the directory, or a leaf lies in a leaf."""
    if not re.fullmatch(rf"0*{body['step']}(\.\d+)?", directory.name):
        raise DamagedError(directory, f"{MANIFEST} is of step {body['step']}")
    for name in body["files"]:
        parts = name.split("/")
        if not name or name.startswith("/") or "\0" in name or {"..", ".", ""} & set(parts):
            raise DamagedError(
                directory, f"{MANIFEST} names the file {name!r}, which is no name in its directory"
            )
    for name, leaf in body["leaves"].items():
        if any(str(parent) in body["leaves"] for parent in PurePosixPath(name).parents):
            raise DamagedError(directory, f"{MANIFEST} has the leaf {name!r} inside another leaf")
        if not leaf["dtype"].startswith("key<") and not _is_dtype(leaf["dtype"]):
            raise DamagedError(
                directory, f"{MANIFEST} has the leaf {name!r} of the unknown type {leaf['dtype']!r}"
            )
    if any(0 not in leaf["shape"] for leaf in body["leaves"].values()) and not any(
        name.startswith("arrays/") for name in body["files"]
    ):
        raise DamagedError(directory, f"{MANIFEST} names no file that holds its leaves")


def _is_dtype(name: str) -> bool:
    try:
        return np.dtype(name).name == name
    except TypeError:
        return False


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _file_names(directory: Path, prefix: str = "") -> Iterator[str]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _file_names(path, f"{prefix}{path.name}/")
        elif path.name:  # some stores list a directory as an object without a name
            yield prefix + path.name


def _checksum(path: Path) -> FileChecksum:
    """Raises OSError where the file cannot be read."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def _size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    if is_bucket(path):
        return int(path.stat().length) if path.is_file() else None
    return os.path.getsize(path) if os.path.isfile(path) else None


def _content_damage(path: Path, expected: FileChecksum) -> str | None:
    try:
        found = _checksum(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == expected else "does not have the contents that were saved (checksum)"
