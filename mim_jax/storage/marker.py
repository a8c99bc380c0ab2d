"""Which directories are ours: those that hold mim_jax.json, and no others. Nothing else is ever written into, moved or removed.

What --overwrite replaces is moved aside, to a name beside the directory, and removed when what replaces it is worth keeping. Only what
our commands have made is removed, name by name: files that somebody else has put there stay, and are reported.
"""

import dataclasses
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterable

from etils import epath

from mim_jax.storage.files import TEMPORARY_MARK, StorageError, is_bucket, read_small_json, write_json
from mim_jax.storage.lock import LOCK_FILE

MARKER_FILE = "mim_jax.json"
FORMAT, VERSION = "mim_jax run", 1
_MAX_NAMES = 3

RUN_FILES = (
    LOCK_FILE, "config.json", "versions.json", "sessions.json", "metrics.jsonl", "per_image.json", "bad_images.json", "wandb.json", "report.html",
    "first_batch.png", "parameters.txt", "confusion.png", "gallery.png", "tokenizer.safetensors", "heads.csv", "layers.csv", "cka.csv", "layers.png",
    "cka.png", "rollout.png",
)  # fmt: skip
RUN_DIRECTORIES = ("checkpoints", "tensorboard", "wandb", "features", "kmeans")
"""All that our commands write into a run's directory (tests/training/test_run_directory.py looks)."""
_RUN_FILE_PATTERNS = ("attention-*.png", "diverged-*.json")
_REPLACED = ".replaced-"
IGNORED_NAMES = (LOCK_FILE, "lock", "lost+found")
"""What an empty directory may hold: what a file system or a killed start of ours has left there."""


@dataclasses.dataclass(frozen=True)
class Marker:
    """What mim_jax.json says. replaces: names beside the directory under which what it replaces is kept."""

    task: str
    replaces: tuple[str, ...] = ()


def check_directory(
    directory: epath.Path, task: str, *, overwrite: bool = False, what: str = "--workdir"
) -> Marker | None:
    """Whether a directory may be written into by a task; changes nothing.

    Returns:
        The marker of one that is ours; None for one that is missing or empty.
    Raises:
        StorageError: it is a file or a dangling link, holds files that are not ours, or is another task's.
    """
    names = _list_names(directory, what)
    if names is None or all(_is_ignored(name) for name in names):
        return None
    marker = read_marker(directory)
    if marker is None:
        raise StorageError(_describe_foreign_files(directory, names, overwrite, what))
    if marker.task != task:
        raise StorageError(
            f"{what}={directory} belongs to the task {marker.task}, and this is the task {task}: give another directory"
        )
    return marker


def read_marker(directory: epath.Path) -> Marker | None:
    """What mim_jax.json in the directory says; None where there is none that is ours."""
    path = directory / MARKER_FILE
    content = read_small_json(path)
    if content.get("format") != FORMAT or not isinstance(content.get("task"), str):
        return None
    if content.get("version") != VERSION:
        raise StorageError(
            f"{path} is of version {content.get('version')!r} of our format, and this mim_jax knows version {VERSION}: use the one that"
            " made it, or another directory"
        )
    replaces = content.get("replaces", [])
    named = isinstance(replaces, list) and all(
        isinstance(name, str) and _is_plain_name(name) for name in replaces
    )
    return Marker(content["task"], tuple(replaces) if named else ())


def refuse_links(directory: epath.Path) -> None:
    """Raises StorageError where a folder of a run is a link: what is made and removed in it would lie elsewhere."""
    for name in RUN_DIRECTORIES:
        path = directory / name
        if not is_bucket(path) and os.path.islink(path):
            raise StorageError(
                f"{path} is a link to {os.readlink(path)}: make it a directory; the whole of --workdir may be a link, no part of it"
            )


def write_marker(directory: epath.Path, marker: Marker) -> None:
    """Makes a directory ours. Raises StorageError."""
    content: dict[str, object] = {"format": FORMAT, "version": VERSION, "task": marker.task}
    if marker.replaces:
        content["replaces"] = list(marker.replaces)
    write_json(directory / MARKER_FILE, content)


def follow_link(directory: epath.Path, what: str = "--workdir") -> epath.Path:
    """The directory itself where the path is a link to one: scratch disks are often linked to.

    Raises:
        StorageError: the link leads nowhere, or to a file.
    """
    if is_bucket(directory) or not os.path.islink(directory):
        return directory
    target = os.path.realpath(directory)
    if not os.path.isdir(target):
        is_what = "a file" if os.path.exists(target) else "not there"
        raise StorageError(
            f"{what}={directory} is a link to {target}, which is {is_what}: remove the link, or give a directory"
        )
    return epath.Path(target)


def check_movable(directory: epath.Path, what: str = "--workdir") -> None:
    """Raises StorageError where a directory of ours cannot be moved aside: in a bucket, or we stand in it."""
    if is_bucket(directory):
        raise StorageError(
            f"--overwrite: {directory} lies in a bucket, where nothing can be moved aside: give another directory, or remove it yourself"
        )
    if pathlib.Path.cwd().is_relative_to(os.path.realpath(directory)):
        raise StorageError(
            f"--overwrite: {what}={directory} is, or holds, the current directory: start from outside of it"
        )


def move_aside(directory: epath.Path) -> str:
    """Gives a directory of ours a name beside it, which is returned; its own name is free then. Raises StorageError."""
    real = pathlib.Path(os.path.realpath(directory))
    aside = real.with_name(f"{real.name}{_REPLACED}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    try:
        os.rename(real, aside)
    except OSError as error:
        raise StorageError(
            f"--overwrite: {directory} cannot be moved aside to {aside} ({error.strerror}): give another directory"
        ) from error
    return aside.name


def move_back(directory: epath.Path, aside: str) -> bool:
    """Undoes `move_aside`; whether it could be undone (the directory's name must be free)."""
    real = pathlib.Path(os.path.realpath(directory))
    if real.exists():
        return False
    os.rename(real.with_name(aside), real)
    return True


def remove_replaced(directory: epath.Path, names: Iterable[str]) -> list[str]:
    """Removes what was moved aside, and what that had replaced itself. Returns a sentence for each that holds other people's files."""
    sentences = []
    for name in names:
        real = epath.Path(os.path.realpath(directory))
        aside = real.with_name(name)
        if not name.startswith(f"{real.name}{_REPLACED}") or os.path.islink(aside):
            continue
        if (marker := read_marker(aside)) is None:
            continue
        sentences += remove_replaced(directory, marker.replaces)
        if remaining := remove_run_files(aside):
            sentences.append(f"{aside} is kept: it holds files that are not ours ({_first_names(remaining)})")
    return sentences


def remove_run_files(directory: epath.Path) -> list[str]:
    """Removes what our commands have made in a directory with our marker, and the directory if it is empty then. Returns the names that remain."""
    path_of_run = pathlib.Path(directory)
    # The marker goes last but for the lock: until then it is ours, and nobody else's to begin in.
    for name in sorted(os.listdir(path_of_run), key=lambda name: (name == LOCK_FILE, name == MARKER_FILE)):
        path = path_of_run / name
        is_run_file = (
            name in (*RUN_FILES, MARKER_FILE)
            or any(path.match(pattern) for pattern in _RUN_FILE_PATTERNS)
            or TEMPORARY_MARK in name
        )
        if path.is_symlink():
            if is_run_file or name in RUN_DIRECTORIES:
                path.unlink()  # the link; what it leads to is not ours
        elif is_run_file and path.is_file():
            path.unlink()
        elif name in RUN_DIRECTORIES and path.is_dir():
            shutil.rmtree(path)
    remaining = os.listdir(path_of_run)
    if not remaining:
        path_of_run.rmdir()
    return sorted(remaining)


def _list_names(directory: epath.Path, what: str) -> list[str] | None:
    """What lies in a directory; None where there is none."""
    if is_bucket(directory):
        return [path.name for path in directory.iterdir()] if directory.is_dir() else None
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        if os.path.islink(directory):
            follow_link(directory, what)
        return None
    except NotADirectoryError as error:
        raise StorageError(f"{what}={directory} is a file, not a directory: give another path") from error
    except OSError as error:
        raise StorageError(f"{what}={directory} cannot be read: {error.strerror}") from error


def _is_ignored(name: str) -> bool:
    return (
        name in IGNORED_NAMES or name.startswith(".nfs") or (name.startswith(".") and TEMPORARY_MARK in name)
    )


def _is_plain_name(name: str) -> bool:
    """Whether a name is that of something in the same directory, and nothing else."""
    return name == os.path.basename(name) and name not in ("", ".", "..")


def _describe_foreign_files(directory: epath.Path, names: list[str], overwrite: bool, what: str) -> str:
    holds = f"{what}={directory} holds files that are not ours ({_first_names(sorted(names))}; no {MARKER_FILE} of ours)"
    if {"config.json", "checkpoints"} <= set(names):
        return (
            f"{holds}: give a new or empty directory, or, if it is a run that an earlier version of mim_jax made, say so:"
            f' echo \'{{"format": "{FORMAT}", "version": {VERSION}, "task": "train"}}\' > {directory / MARKER_FILE}'
        )
    done = "so nothing is overwritten" if overwrite else "so nothing is written there"
    return f"{holds}, {done}: give a new or empty directory"


def _first_names(names: list[str]) -> str:
    shown = ", ".join(repr(name)[1:-1] for name in names[:_MAX_NAMES])
    return shown + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
