"""A run's directory, taken for one process: looked at first, touched only once everything else is known to be right.

with Claim(workdir, "pretrain", overwrite=overwrite) as claim:  # refuses what is not ours; changes nothing
    ...  # the whole configuration, data, method, batch, devices
    claim.take(config)  # lock, what --overwrite replaces moved aside, marker, config.json, versions.json
    ...
    claim.keep()  # there is a result: what was replaced is removed

Where it ends without a result, what was replaced gets its name back. On several hosts the first process does all this.
"""

import json
import os
from types import TracebackType
from typing import Self

import jax
from etils import epath

from mim_jax import storage
from mim_jax.config.check import ConfigError, to_dict
from mim_jax.config.schema import Config
from mim_jax.storage import Lock, StorageError, marker
from mim_jax.storage.lock import FILE as LOCK
from mim_jax.storage.marker import Marker
from mim_jax.training.checkpoints import read_custom_metadata
from mim_jax.training.distributed import first_process_does
from mim_jax.training.watching.log import say
from mim_jax.training.workdir import (
    CONFIG,
    VERSIONS,
    checked,
    differences,
    read_config,
    refuse_changed_config,
    versions,
)

WORK = ("checkpoints", "features", "tokenizer.safetensors")
"""What is worth protecting from a command with another configuration."""


class Claim:
    """The directory of one run.

    Args:
        workdir: as the user gave it.
        task: config.task of whom it is for; a directory of another task is refused.
        overwrite: whether what a run of ours has left there is replaced.
    """

    def __init__(self, workdir: str | os.PathLike[str], task: str, *, overwrite: bool = False) -> None:
        self.given = storage.located(workdir, "--workdir")
        self.path = self.given  # once looked at: what a link leads to
        self._task, self._overwrite = task, overwrite
        self._lock: Lock | None = None
        self._replaced: tuple[str, ...] = ()
        self._moved = ""  # what this claim itself has moved aside

    def __enter__(self) -> Self:
        """Raises StorageError for a directory that cannot be used; nothing is changed."""
        self.path = marker.resolved(self.given)
        if jax.process_index() == 0:
            found = marker.examine(self.path, self._task, overwrite=self._overwrite)
            if found is not None and self._overwrite:
                marker.check_movable(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moved:
            self._give_back()
        if self._lock is not None:
            self._lock.release()

    def take(self, config: Config) -> None:
        """Makes the directory this process's; on several hosts all call it, and fail together.

        Raises:
            StorageError: another process has it, or it cannot be written.
            ConfigError: it holds checkpoints of another configuration; the message names the keys that differ.
        """
        first_process_does(lambda: self._take(config), f"take {self.path}")

    def keep(self) -> None:
        """There is something worth keeping now: removes what it replaces. May be called in any thread, and again."""
        replaced, self._replaced, self._moved = self._replaced, (), ""
        if replaced:
            for sentence in marker.remove_replaced(self.path, replaced):
                say(sentence)
            marker.write_marker(self.path, Marker(self._task))

    def pause(self) -> None:
        """There is no result yet, but work that a later start goes on with: both stay, what it replaces beside it."""
        self._moved = ""

    def _take(self, config: Config) -> None:
        now = json.loads(json.dumps(to_dict(config)))
        storage.make_folder(self.path, "--workdir")
        self._lock = Lock(self.path / LOCK, str(self.path))
        try:
            self._lock.acquire()
        except StorageError:
            self._lock = None
            raise
        found = marker.examine(
            self.path, self._task, overwrite=self._overwrite
        )  # nobody else may change it now
        if found is not None and self._overwrite:
            self._move_aside()
        elif found is not None:
            marker.refuse_links(self.path)
            self._replaced = found.replaces
            refuse_other_configuration(self.path, now)
            storage.remove_leftovers(self.path)
        marker.write_marker(self.path, Marker(self._task, self._replaced))
        storage.write_json(self.path / CONFIG, now)
        storage.write_json(self.path / VERSIONS, versions())
        if self.path != self.given:
            say(f"{self.given} is a link: the run is kept in {self.path}")
        if self._replaced:
            say(
                f"what it replaces is kept as {', '.join(self._replaced)} beside {self.path} until the first checkpoint"
            )

    def _move_aside(self) -> None:
        assert self._lock is not None
        marker.check_movable(self.path)
        self._moved = marker.move_aside(self.path)
        self._replaced = (self._moved,)
        self._lock.moved(self.path.with_name(self._moved) / LOCK)
        try:
            os.mkdir(self.path)
            own = Lock(self.path / LOCK, str(self.path))
            own.acquire()
        except (OSError, StorageError) as error:
            aside, self._moved = self._moved, ""  # what lies in its place now is another's
            raise StorageError(
                f"{self.path} was taken by another process while it was replaced: what it held is in"
                f" {self.path.with_name(aside)}"
            ) from error
        self._lock.release()
        self._lock = own

    def _give_back(self) -> None:
        """The new run has left nothing worth keeping: the old one gets its name back."""
        aside, self._moved = self._moved, ""
        kept = f"what it held before is kept in {self.path.with_name(aside)}"
        left = marker.remove_ours(self.path) if self.path.exists() else []
        if not left and marker.move_back(self.path, aside):
            say(f"{self.path} is as it was before --overwrite: the new run ended before its first checkpoint")
        else:
            say(f"{self.path} holds the beginning of a run; {kept}")


def refuse_other_configuration(workdir: epath.Path, now: dict[str, object]) -> None:
    """Raises ConfigError where a directory's checkpoints are of another configuration than `now`, its JSON.

    The checkpoints' own word counts, where they say what they were trained with; config.json may be gone, or have been changed.
    """
    if not any(_holds_work(workdir / name) for name in WORK):
        return  # nothing was kept, so there is nothing to protect
    about = read_custom_metadata(workdir / "checkpoints")
    if about is None and not (workdir / CONFIG).exists():
        raise ConfigError(
            f"{workdir} holds work, but no {CONFIG} that says what it was made with: restore it, or give --workdir another directory,"
            " or --overwrite to start anew"
        )
    trained_with = None if about is None else about.get("config")
    if not isinstance(trained_with, dict):
        old = read_config(workdir)
    else:
        old = checked(workdir, trained_with)  # keys of later versions have their defaults
        if (workdir / CONFIG).exists():
            refuse_changed_config(workdir, trained_with)
    changed = list(differences(to_dict(old), now))
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with another configuration ({'; '.join(changed)}): give --workdir another directory,"
            " or --overwrite to start it anew"
        )


def _holds_work(path: epath.Path) -> bool:
    return any(True for _ in path.iterdir()) if path.is_dir() else path.exists()
