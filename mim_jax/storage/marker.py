"""Which directories are ours: those that hold mim_jax.json, and no others. Nothing else is ever written into, moved or removed.

What --overwrite replaces is moved aside, to a name beside the directory, and removed when what replaces it is worth keeping. Removed is
what we have made ourselves, name by name: files that somebody else has put there stay, and are said.
"""

import dataclasses
import json
import os
import pathlib
import secrets
import shutil
import stat
import time
from collections.abc import Iterable

from etils import epath

from mim_jax.storage.files import _MARK, StorageError, is_bucket, write_json
from mim_jax.storage.lock import FILE as LOCK

FILE = "mim_jax.json"
FORMAT, VERSION = "mim_jax run", 1
MOST_BYTES = 65_536
SHOWN = 3

OWN_FILES = (
    LOCK, "config.json", "versions.json", "sessions.json", "metrics.jsonl", "bad_images.json", "wandb.json", "report.html",
    "first_batch.png", "confusion.png", "gallery.png", "tokenizer.safetensors", "heads.csv", "layers.csv", "cka.csv", "layers.png",
    "cka.png", "rollout.png",
)  # fmt: skip
OWN_FOLDERS = ("checkpoints", "tensorboard", "wandb", "features", "kmeans")
"""All that our commands write into a run's directory (tests/training/test_claims.py looks)."""
_OWN_PATTERNS = ("attention-*.png", "diverged-*.json")
_ASIDE = ".replaced-"
NOBODYS = (LOCK, "lock", "lost+found")
"""What an empty directory may hold: what a file system or a killed start of ours has left there."""


@dataclasses.dataclass(frozen=True)
class Marker:
    """What mim_jax.json says. replaces: names beside the directory under which what it replaces is kept."""

    task: str
    replaces: tuple[str, ...] = ()


def examine(
    directory: epath.Path, task: str, *, overwrite: bool = False, what: str = "--workdir"
) -> Marker | None:
    """Whether a directory may be written into by a task; changes nothing.

    Returns:
        The marker of one that is ours; None for one that is missing or empty.
    Raises:
        StorageError: it is a file or a dangling link, holds files that are not ours, or is another task's.
    """
    names = _names(directory, what)
    if names is None or all(_is_nobodys(name) for name in names):
        return None
    marker = read_marker(directory)
    if marker is None:
        raise StorageError(_foreign(directory, names, overwrite, what))
    if marker.task != task:
        raise StorageError(
            f"{what}={directory} belongs to the task {marker.task}, and this is the task {task}: give another directory"
        )
    return marker


def read_marker(directory: epath.Path) -> Marker | None:
    """What mim_jax.json in the directory says; None where there is none that is ours."""
    path = directory / FILE
    try:
        if is_bucket(path):
            content = path.read_bytes() if path.exists() else b""
        else:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                return None
            with open(path, "rb") as stream:
                content = stream.read(MOST_BYTES)
        found = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("task"), str):
        return None
    if found.get("version") != VERSION:
        raise StorageError(
            f"{path} is of version {found.get('version')!r} of our format, and this mim_jax knows version {VERSION}: use the one that"
            " made it, or another directory"
        )
    replaces = found.get("replaces", [])
    named = isinstance(replaces, list) and all(isinstance(name, str) and _is_plain(name) for name in replaces)
    return Marker(found["task"], tuple(replaces) if named else ())


def refuse_links(directory: epath.Path) -> None:
    """Raises StorageError where a folder of a run is a link: what is made and removed in it would lie elsewhere."""
    for name in OWN_FOLDERS:
        path = directory / name
        if not is_bucket(path) and os.path.islink(path):
            raise StorageError(
                f"{path} is a link to {os.readlink(path)}: make it a directory; the whole of --workdir may be a link, no part of it"
            )


def write_marker(directory: epath.Path, marker: Marker) -> None:
    """Makes a directory ours. Raises StorageError."""
    about = {"format": FORMAT, "version": VERSION, "task": marker.task}
    write_json(directory / FILE, about | ({"replaces": list(marker.replaces)} if marker.replaces else {}))


def resolved(directory: epath.Path, what: str = "--workdir") -> epath.Path:
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
    real, here = pathlib.Path(os.path.realpath(directory)), pathlib.Path.cwd()
    if here.is_relative_to(real):
        raise StorageError(
            f"--overwrite: {what}={directory} is, or holds, the current directory: start from outside of it"
        )


def move_aside(directory: epath.Path) -> str:
    """Gives a directory of ours a name beside it, which is returned; its own name is free then. Raises StorageError."""
    real = pathlib.Path(os.path.realpath(directory))
    aside = real.with_name(f"{real.name}{_ASIDE}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
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
    said = []
    for name in names:
        real = epath.Path(os.path.realpath(directory))
        aside = real.with_name(name)
        if not name.startswith(f"{real.name}{_ASIDE}") or os.path.islink(aside):
            continue
        if (marker := read_marker(aside)) is None:
            continue
        said += remove_replaced(directory, marker.replaces)
        left = remove_ours(aside)
        if left:
            said.append(f"{aside} is kept: it holds files that are not ours ({_some(left)})")
    return said


def remove_ours(directory: epath.Path) -> list[str]:
    """Removes what our commands have made in a directory with our marker, and the directory if it is empty then; what is left."""
    place = pathlib.Path(directory)
    # The marker goes last but for the lock: until then it is ours, and nobody else's to begin in.
    for name in sorted(os.listdir(place), key=lambda name: (name == LOCK, name == FILE)):
        path = place / name
        own_file = (
            name in (*OWN_FILES, FILE)
            or any(path.match(pattern) for pattern in _OWN_PATTERNS)
            or _MARK in name
        )
        if path.is_symlink():
            if own_file or name in OWN_FOLDERS:
                path.unlink()  # the link; what it leads to is not ours
        elif own_file and path.is_file():
            path.unlink()
        elif name in OWN_FOLDERS and path.is_dir():
            shutil.rmtree(path)
    left = os.listdir(place)
    if not left:
        place.rmdir()
    return sorted(left)


def _names(directory: epath.Path, what: str) -> list[str] | None:
    """What lies in a directory; None where there is none."""
    if is_bucket(directory):
        return [path.name for path in directory.iterdir()] if directory.is_dir() else None
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        if os.path.islink(directory):
            resolved(directory, what)
        return None
    except NotADirectoryError as error:
        raise StorageError(f"{what}={directory} is a file, not a directory: give another path") from error
    except OSError as error:
        raise StorageError(f"{what}={directory} cannot be read: {error.strerror}") from error


def _is_nobodys(name: str) -> bool:
    return name in NOBODYS or name.startswith(".nfs") or (name.startswith(".") and _MARK in name)


def _is_plain(name: str) -> bool:
    """Whether a name is that of something in the same directory, and nothing else."""
    return name == os.path.basename(name) and name not in ("", ".", "..")


def _foreign(directory: epath.Path, names: list[str], overwrite: bool, what: str) -> str:
    holds = f"{what}={directory} holds files that are not ours ({_some(sorted(names))}; no {FILE} of ours)"
    if {"config.json", "checkpoints"} <= set(names):
        return (
            f"{holds}: give a new or empty directory, or, if it is a run that an earlier version of mim_jax made, say so:"
            f' echo \'{{"format": "{FORMAT}", "version": {VERSION}, "task": "pretrain"}}\' > {directory / FILE}'
        )
    done = "so nothing is overwritten" if overwrite else "so nothing is written there"
    return f"{holds}, {done}: give a new or empty directory"


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name)[1:-1] for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
