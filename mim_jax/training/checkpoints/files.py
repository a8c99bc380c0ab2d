"""Names in a checkpoint directory: `00000030` is a checkpoint, `unfinished-...` one being written.

A checkpoint is written under its unfinished name and renamed once, when it is whole: a kill at any instant
leaves either all of it or nothing that counts. A step saved again becomes `00000030.1`, so that its
predecessor is whole until the rename and replaced by it; the highest number counts.
"""

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from mim_jax.training.checkpoints.manifest import CheckpointError, sync_directory

_NAME = re.compile(r"(\d{8,})(?:\.(\d+))?")
_UNFINISHED = "unfinished-"
_DISCARDED = "discarded-"


class Entry(NamedTuple):
    """One checkpoint on disk, good or not; ordered from old to new."""

    step: int
    generation: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.step:08d}" + (f".{self.generation}" if self.generation else "")


def checked_directory(directory: str | os.PathLike[str]) -> Path:
    """The absolute path of a checkpoint directory, which need not exist. Raises CheckpointError."""
    text = os.fspath(directory)
    if "://" in text:
        raise CheckpointError(
            f"{text} is not a path of a file system: checkpoints need renames, so mount the bucket "
            "(gcsfuse, s3fs) and give the mounted path"
        )
    path = Path(text).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file: give a directory for the checkpoints")
    return path


def entries(directory: Path) -> list[Entry]:
    """Checkpoints on disk from old to new; none where the directory does not exist."""
    if not directory.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in directory.iterdir() if path.is_dir())
    return sorted(Entry(int(match[1]), int(match[2] or 0)) for match in matches if match)


def unfinished_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written until it is whole."""
    return directory / f"{_UNFINISHED}{step:08d}"


def unfinished(directory: Path) -> list[str]:
    """Names of saves that never ended."""
    return sorted(path.name for path in directory.glob(f"{_UNFINISHED}*"))


def remove_leftovers(directory: Path) -> None:
    """Removes what killed saves and killed removals have left. Raises OSError."""
    for pattern in (f"{_UNFINISHED}*", f"{_DISCARDED}*"):
        for path in directory.glob(pattern):
            shutil.rmtree(path)


def commit(directory: Path, step: int) -> Entry:
    """Gives a whole unfinished checkpoint its name, in one rename. Raises OSError."""
    generations = [entry.generation for entry in entries(directory) if entry.step == step]
    entry = Entry(step, max(generations) + 1 if generations else 0)
    unfinished_path(directory, step).rename(directory / entry.name)
    sync_directory(directory)
    return entry


def discard(directory: Path, unwanted: Collection[Entry]) -> None:
    """Removes checkpoints: each loses its name first, so that none is ever half there. Raises OSError."""
    for entry in unwanted:
        aside = directory / f"{_DISCARDED}{entry.name}"
        (directory / entry.name).rename(aside)
        shutil.rmtree(aside)
