"""Writes one checkpoint at a time, in a thread: arrays by Orbax, checksums and manifest, the rename.

On several processes Orbax lets every one write its shards and merges them; the first process does the rest.
"""

import contextlib
import dataclasses
import errno
import shutil
import threading
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils.epath import Path
from jax.experimental import multihost_utils

from mim_jax.storage import make_folder
from mim_jax.training.checkpoints import files
from mim_jax.training.checkpoints.checksums import sum_files
from mim_jax.training.checkpoints.manifest import CheckpointError, Manifest, first_line, write_manifest

ARRAYS = "arrays"


class Writer:
    """Holds the one save that may be under way.

    Args:
      directory: of the run's checkpoints.
      after_commit: called with the step, on the first process in the writing thread, once it counts.
    """

    def __init__(
        self, directory: Path, orbax: ocp.AsyncCheckpointer, after_commit: Callable[[int], None]
    ) -> None:
        self._directory = directory
        self._orbax = orbax
        self._after_commit = after_commit
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None

    def start(self, manifest: Manifest, arrays: Mapping[str, jax.Array]) -> None:
        """Starts a save; returns once the arrays' buffers may be donated. `manifest.files` is filled in here.

        Raises CheckpointError if this, or the save before, failed on any process.
        """
        self.wait()
        path = files.unfinished_path(self._directory, manifest.step)
        self._failure = _failure_of(self._directory, manifest.step, lambda: self._prepare(path))
        self._agree()  # before Orbax, whose barriers would wait for a process that has given up
        started = time.monotonic()
        self._failure = _failure_of(self._directory, manifest.step, lambda: self._start_arrays(path, arrays))
        if self._failure is None:
            self._thread = threading.Thread(
                target=self._finish, args=(path, manifest, started), name="checkpoint"
            )
            self._thread.start()
        elif jax.process_count() == 1:
            self._agree()

    def wait(self) -> None:
        """Returns when no save is under way. Raises CheckpointError on every process if it failed on any."""
        if self._thread is not None or self._failure is not None:
            self._join()
            self._agree()

    def abandon(self) -> None:
        """Lets the save under way end without asking the other processes, for one that is itself failing."""
        self._join()
        if self._failure is not None:
            logging.error("%s", self._failure)
            self._failure = None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _agree(self) -> None:
        failure, self._failure = self._failure, None
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.asarray(failure is not None))
            if failure is None and failed.any():
                failure = CheckpointError(
                    f"a checkpoint in {self._directory} failed on process {int(np.argmax(failed))}: "
                    "its log says why"
                )
        if failure is not None:
            raise failure

    def _prepare(self, path: Path) -> None:
        if jax.process_index() == 0:
            make_folder(self._directory)
            files.remove_leftovers(self._directory)
            make_folder(path)

    def _start_arrays(self, path: Path, arrays: Mapping[str, jax.Array]) -> None:
        if arrays:  # Orbax refuses an empty tree
            self._orbax.save(path / ARRAYS, args=ocp.args.PyTreeSave(dict(arrays)))

    def _finish(self, path: Path, manifest: Manifest, started: float) -> None:
        self._failure = _failure_of(
            self._directory, manifest.step, lambda: self._commit(path, manifest, started)
        )
        if self._failure is None and jax.process_index() == 0:
            self._failure = _removal_failure_of(self._directory, lambda: self._after_commit(manifest.step))

    def _commit(self, path: Path, manifest: Manifest, started: float) -> None:
        self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            written = time.monotonic()
            whole = dataclasses.replace(manifest, files=sum_files(path))
            summed = time.monotonic()
            write_manifest(path, whole)
            files.commit(self._directory, manifest.step)
            logging.info(
                "saved checkpoint %d: %.1f MB written in %.2f s, checksums in %.2f s",
                manifest.step, whole.size / 1e6, written - started, summed - written,
            )  # fmt: skip


def _failure_of(directory: Path, step: int, action: Callable[[], None]) -> CheckpointError | None:
    """Runs `action`; what it raises becomes one sentence, and the unfinished checkpoint makes room."""
    try:
        action()
    except Exception as error:  # Orbax and tensorstore raise what they like
        failure = CheckpointError(
            f"checkpoint {step} could not be written to {directory}: {_cause(directory, error)}; "
            "put that right and start again, the checkpoints before it are intact"
        )
        failure.__cause__ = error
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # there may be nothing, or what failed is the disk
                files.remove(files.unfinished_path(directory, step))
        return failure
    return None


def _removal_failure_of(directory: Path, action: Callable[[], None]) -> CheckpointError | None:
    try:
        action()
    except Exception as error:  # nothing may end unseen in a thread
        failure = CheckpointError(
            f"an old checkpoint in {directory} could not be removed: {_cause(directory, error)}; "
            "allow removal there or keep more checkpoints, the newest is saved"
        )
        failure.__cause__ = error
        return failure
    return None


def _cause(directory: Path, error: Exception) -> str:
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        free = shutil.disk_usage(directory if directory.exists() else directory.parent).free
        return f"the disk is full ({free / 1e6:.0f} MB free now that the attempt is removed)"
    if isinstance(error, OSError):
        return f"{error.strerror or error}"
    return first_line(error)
