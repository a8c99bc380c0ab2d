"""A run's directory, locked by one process: checked first, changed only once everything else is known to be right.

with RunDirectory(workdir, "train", overwrite=overwrite) as run_directory:  # refuses what is not ours; changes nothing
    ...  # configuration, data, method, batch, devices
    run_directory.acquire(config)  # locks, moves aside what --overwrite replaces, writes marker, config.json, versions.json
    ...
    run_directory.discard_replaced()  # there is a result: what it replaces is removed

Where it ends without a result, what was moved aside gets its name back. On several hosts the first process does all this.
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import jax
from etils.epath import Path

from mim_jax import storage
from mim_jax.config.check import ConfigError, check, differences, to_dict
from mim_jax.config.schema import Config
from mim_jax.progress import log
from mim_jax.reading import Unreadable, mapping, read_json
from mim_jax.storage import Lock, StorageError, marker
from mim_jax.storage.lock import LOCK_FILE
from mim_jax.storage.marker import Marker
from mim_jax.training.checkpoints import read_custom_metadata
from mim_jax.training.distributed import first_process_does

CONFIG, VERSIONS = "config.json", "versions.json"

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml-collections",
    "scikit-learn",
    "pillow",
)

RESULTS = ("checkpoints", "features", "tokenizer.safetensors")
"""What is worth protecting from a command with another configuration."""


class RunDirectory:
    """The directory of one run.

    Args:
        workdir: as the user gave it.
        task: config.task of whom it is for; a directory of another task is refused.
        overwrite: whether what a run of ours has left there is replaced.
    """

    def __init__(self, workdir: str | os.PathLike[str], task: str, *, overwrite: bool = False) -> None:
        self.requested_path = storage.parse_path(workdir, "--workdir")
        self.path = self.requested_path  # inside the context: what a link leads to
        self._task, self._overwrite = task, overwrite
        self._lock: Lock | None = None
        self._replaced: tuple[str, ...] = ()
        self._moved = ""  # name beside it of what this process has moved aside

    def __enter__(self) -> Self:
        """Raises StorageError for a directory that cannot be used; nothing is changed."""
        self.path = marker.follow_link(self.requested_path)
        if jax.process_index() == 0:
            previous = marker.check_directory(self.path, self._task, overwrite=self._overwrite)
            if previous is not None and self._overwrite:
                marker.check_movable(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moved:
            self._restore_replaced()
        if self._lock is not None:
            self._lock.release()

    def acquire(self, config: Config) -> None:
        """Locks the directory and writes its first files; on several hosts all call it, and fail together.

        Raises:
            StorageError: another process has it, or it cannot be written.
            ConfigError: it holds checkpoints of another configuration; the message names the keys that differ.
        """
        first_process_does(lambda: self._acquire(config), f"acquire {self.path}")

    def discard_replaced(self) -> None:
        """There is something worth keeping now: removes what it replaces. May be called in any thread, and again."""
        replaced, self._replaced, self._moved = self._replaced, (), ""
        if replaced:
            for sentence in marker.remove_replaced(self.path, replaced):
                log(sentence)
            marker.write_marker(self.path, Marker(self._task))

    def keep_replaced(self) -> None:
        """There is no result yet, but work that a later start goes on with: both stay, what it replaces beside it."""
        self._moved = ""

    def _acquire(self, config: Config) -> None:
        config_json = json.loads(json.dumps(to_dict(config)))
        storage.make_directory(self.path, "--workdir")
        self._lock = Lock(self.path / LOCK_FILE, str(self.path))
        try:
            self._lock.acquire()
        except StorageError:
            self._lock = None
            raise
        # Again: nobody else may change it from here on.
        previous = marker.check_directory(self.path, self._task, overwrite=self._overwrite)
        if previous is not None and self._overwrite:
            self._move_aside()
        elif previous is not None:
            marker.refuse_links(self.path)
            self._replaced = previous.replaces
            refuse_other_config(self.path, config_json)
            storage.remove_temporary_files(self.path)
        marker.write_marker(self.path, Marker(self._task, self._replaced))
        storage.write_json(self.path / CONFIG, config_json)
        storage.write_json(self.path / VERSIONS, versions())
        if self.path != self.requested_path:
            log(f"{self.requested_path} is a link: the run is kept in {self.path}")
        if self._replaced:
            log(
                f"what it replaces is kept as {', '.join(self._replaced)} beside {self.path} until the first checkpoint"
            )

    def _move_aside(self) -> None:
        assert self._lock is not None
        marker.check_movable(self.path)
        self._moved = marker.move_aside(self.path)
        self._replaced = (self._moved,)
        self._lock.relocate(self.path.with_name(self._moved) / LOCK_FILE)
        try:
            os.mkdir(self.path)
            new_lock = Lock(self.path / LOCK_FILE, str(self.path))
            new_lock.acquire()
        except (OSError, StorageError) as error:
            aside, self._moved = self._moved, ""  # what has its name now is another's
            raise StorageError(
                f"{self.path} was taken by another process while it was replaced: what it held is in"
                f" {self.path.with_name(aside)}"
            ) from error
        self._lock.release()
        self._lock = new_lock

    def _restore_replaced(self) -> None:
        """The new run has left nothing worth keeping: the old one gets its name back."""
        aside, self._moved = self._moved, ""
        kept = f"what it held before is kept in {self.path.with_name(aside)}"
        remaining = marker.remove_run_files(self.path) if self.path.exists() else []
        if not remaining and marker.move_back(self.path, aside):
            log(f"{self.path} is as it was before --overwrite: the new run ended before its first checkpoint")
        else:
            log(f"{self.path} holds the beginning of a run; {kept}")


def refuse_other_config(workdir: Path, config_json: dict[str, object]) -> None:
    """Raises ConfigError where a directory's checkpoints are of another configuration than this one.

    The checkpoints decide, where they say what they were trained with; config.json may be gone, or have been changed.
    """
    if not any(_holds_files(workdir / name) for name in RESULTS):
        return  # nothing was kept, so there is nothing to protect
    metadata = read_custom_metadata(workdir / "checkpoints")
    if metadata is None and not (workdir / CONFIG).exists():
        raise ConfigError(
            f"{workdir} holds work, but no {CONFIG} that says what it was made with: restore it, or give --workdir another directory,"
            " or --overwrite to start anew"
        )
    trained_with = None if metadata is None else metadata.get("config")
    if not isinstance(trained_with, dict):
        previous = read_config(workdir)
    else:
        previous = check_trained_config(workdir, trained_with)  # keys of later versions have their defaults
        if (workdir / CONFIG).exists():
            refuse_changed_config(workdir, trained_with)
    changed = list(differences(to_dict(previous), config_json))
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with another configuration ({'; '.join(changed)}): give --workdir another directory,"
            " or --overwrite to start it anew"
        )


def _holds_files(path: Path) -> bool:
    return any(True for _ in path.iterdir()) if path.is_dir() else path.exists()


def read_config(workdir: Path) -> Config:
    """The resolved configuration of a run, from its directory alone.

    Raises:
        ConfigError: there is no run, or its config.json cannot be read.
    """
    path = workdir / CONFIG
    try:
        tree = read_json(path, mapping())
    except Unreadable as error:
        if error.absent:
            raise ConfigError(f"{workdir} holds no run of ours: there is no {path}") from error
        raise ConfigError(f"{path} is damaged ({error}): restore it, or train anew") from error
    try:
        return check(tree)
    except ConfigError as error:
        raise ConfigError(f"{path} is no configuration of ours: {error}") from error


def refuse_changed_config(workdir: Path, trained_with: Mapping[str, Any]) -> None:
    """Raises ConfigError where config.json is not what the checkpoint says it was trained with."""
    changed = list(
        differences(to_dict(check_trained_config(workdir, trained_with)), to_dict(read_config(workdir)))
    )
    if changed:
        raise ConfigError(
            f"{workdir / CONFIG} was changed after the training ({'; '.join(changed)}): put it back as it was"
        )


def check_trained_config(workdir: Path, trained_with: Mapping[str, Any]) -> Config:
    """The configuration that a checkpoint says it was trained with. Raises ConfigError where it is none."""
    try:
        return check(trained_with)
    except ConfigError as error:
        raise ConfigError(
            f"the checkpoints in {workdir} were trained with no configuration of ours: {error}"
        ) from error


def versions() -> dict[str, str]:
    """Versions of what computes: Python, packages, devices."""
    result = {"python": platform.python_version()}
    for package in PACKAGES:
        result[package] = importlib.metadata.version(package)
    result["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    result["processes"] = str(jax.process_count())
    return result
