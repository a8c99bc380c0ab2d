"""Names in a checkpoint directory: `00000030` is a checkpoint, `unfinished-...` one being written.

A checkpoint is written under its unfinished name and renamed once, when it is whole: a kill at any instant
leaves either all of it or nothing that counts. A step saved again becomes `00000030.1`, so that its
predecessor is whole until the rename and replaced by it; the highest number counts.

A bucket has no renames: there a checkpoint has its name at once, and counts once its manifest, written last, is there.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from typing import NamedTuple

from etils.epath import Path

from mim_jax.storage import StorageError, is_bucket, located
from mim_jax.training.checkpoints.manifest import NAME as MANIFEST
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
    try:
        path = located(directory, "the directory of checkpoints")
    except StorageError as error:
        raise CheckpointError(str(error)) from error
    if is_bucket(path):
        return path
    path = Path(os.path.abspath(path))
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file: give a directory for the checkpoints")
    return path


def entries(directory: Path) -> list[Entry]:
    """Checkpoints on disk from old to new; none where the directory does not exist."""
    return sorted(
        entry for entry, path in _numbered(directory) if not is_bucket(path) or (path / MANIFEST).exists()
    )


def unfinished_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written until it is whole."""
    return directory / (_next(directory, step).name if is_bucket(directory) else f"{_UNFINISHED}{step:08d}")


def unfinished(directory: Path) -> list[str]:
    """Names of saves that never ended."""
    return sorted(path.name for path in _leftovers(directory, _UNFINISHED))


def remove_leftovers(directory: Path) -> None:
    """Removes what killed saves and killed removals have left. Raises OSError."""
    for path in _leftovers(directory, _UNFINISHED, _DISCARDED):
        remove(path)


def remove(directory: Path) -> None:
    """Removes a directory with all below it. Raises OSError."""
    if is_bucket(directory):
        directory.rmtree()
    else:
        shutil.rmtree(directory)


def commit(directory: Path, step: int) -> None:
    """Gives a whole unfinished checkpoint its name, in one rename; in a bucket it has it. Raises OSError."""
    if not is_bucket(directory):
        os.rename(unfinished_path(directory, step), directory / _next(directory, step).name)
        sync_directory(directory)


def discard(directory: Path, unwanted: Collection[Entry]) -> None:
    """Removes checkpoints: each loses its name first, so that none is ever half there. Raises OSError."""
    for entry in unwanted:
        path = directory / entry.name
        if is_bucket(path):
            (path / MANIFEST).unlink()
        else:
            aside = directory / f"{_DISCARDED}{entry.name}"
            os.rename(path, aside)
            path = aside
        remove(path)


def _numbered(directory: Path) -> Iterator[tuple[Entry, Path]]:
    """Directories with a checkpoint's name."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if (match := _NAME.fullmatch(path.name)) and path.is_dir():
            yield Entry(int(match[1]), int(match[2] or 0)), path


def _next(directory: Path, step: int) -> Entry:
    """The name that a checkpoint of `step` gets."""
    generations = [entry.generation for entry in entries(directory) if entry.step == step]
    return Entry(step, max(generations) + 1 if generations else 0)


def _leftovers(directory: Path, *prefixes: str) -> list[Path]:
    """What never became a checkpoint, or is none any more."""
    if is_bucket(directory):
        return [path for _, path in _numbered(directory) if not (path / MANIFEST).exists()]
    there = directory.iterdir() if directory.is_dir() else ()
    return [path for path in there if path.name.startswith(prefixes)]
