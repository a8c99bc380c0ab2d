"""Checkpoints that survive: asynchronous, atomic, verified when read, restored onto any mesh.

    with Checkpoints(workdir / "checkpoints", keep_last=2) as checkpoints:
        if (restored := checkpoints.restore(abstract_state)) is not None:
            step, state = restored
        ...
        checkpoints.save(step, state, {"eval/knn_top1": 71.2})

Orbax's CheckpointManager writes and reads the arrays, commits a step, and removes old ones. Ours are the checksums and the choice of a
good step (Orbax counts truncated and emptied checkpoints as present, and restores flipped bytes as NaN), the refusal of another model,
and one sentence for what fails. On several processes every method that writes or restores is called by all, and the directory is on a
file system they share.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import shutil
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils.epath import Path
from jax.experimental import multihost_utils

from mim_jax.storage import make_directory
from mim_jax.training.checkpoints import leaves as leaf_lib
from mim_jax.training.checkpoints import manifest as manifest_lib
from mim_jax.training.checkpoints.leaves import PyTree
from mim_jax.training.checkpoints.manifest import MANIFEST, CheckpointError, DamagedError, Manifest
from mim_jax.training.checkpoints.steps import (
    Retention,
    StepNames,
    checked_directory,
    directories_of,
    leftovers,
    step_directories,
    step_name,
    temporary_directory,
)

_MIN_SLICE_BYTES = 1 << 20
"""Replicas share the writing of an array only where each would write at least so much."""
_ARRAYS = "arrays"
_NONE, _ALL_BAD = -1, -2


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Args:
      directory: created by the first save.
      keep_last: how many of the newest stay on disk, at least 1.
      keep_every: steps that are multiples stay for ever; 0 for none.
      best_metric: the checkpoint saved with the largest value of this metric stays as well.
      custom_metadata: JSON that every checkpoint carries (`read_custom_metadata`).
      on_saved: called with the step, on the first process, by the first call after the checkpoint counts.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        best_metric: str | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
        on_saved: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.directory: Path = checked_directory(directory)
        self._retention = Retention(self.directory, keep_last, keep_every, best_metric)
        self._custom_metadata, self._on_saved = dict(custom_metadata or {}), on_saved
        self._saving: Manifest | None = None  # of the save under way, without its files
        self._failure: CheckpointError | None = None
        self._verified: set[int] = set()

    @functools.cached_property
    def _manager(self) -> "_Manager":
        # By default Orbax cuts every replicated array into a slice a device, each by a program of its own: the first save of a
        # small network on eight devices compiled for longer than it trained.
        array_handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES)
        handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=True,
            use_zarr3=True,
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, array_handler)),
        )
        registry = ocp.DefaultCheckpointHandlerRegistry()
        registry.add(_ARRAYS, ocp.args.PyTreeSave, handler)
        registry.add(_ARRAYS, ocp.args.PyTreeRestore, handler)
        options = ocp.CheckpointManagerOptions(
            step_name_format=StepNames(),
            preservation_policy=self._retention,
            create=False,  # a reader makes nothing, and removes nothing that another process is writing
            save_root_metadata=False,
            # Earlier versions left no commit_success.txt in a bucket's steps: there the manifest decides.
            atomicity_options=ocp.options.AtomicityOptions(allow_legacy_atomic_rename=True),
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_manifest, create_directories_asynchronously=False
            ),
        )
        return _Manager(self.directory, options=options, handler_registry=registry)

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Saves `state`, whose buffers may be donated once this returns. A step that restore has refused is replaced.

        Raises CheckpointError for a state that cannot be saved, a step that is not newer than the newest checkpoint, and
        for the failure of the save before, which is waited for.
        """
        self.wait()
        if step < 0:
            raise CheckpointError(f"step {step} cannot be saved in {self.directory}: give 0 or more")
        trusted = [other for other in self.steps() if other not in self._retention.refused]
        if trusted and trusted[-1] >= step:
            relation = (
                "is saved already" if trusted[-1] == step else f"is older than checkpoint {trusted[-1]}"
            )
            raise CheckpointError(
                f"step {step} {relation} in {self.directory}: restore before saving, or start in an empty directory"
            )
        leaves = leaf_lib.flatten(state)
        arrays, specs = leaf_lib.to_stored(leaves), leaf_lib.specs_of(leaves)
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        self._saving = Manifest(step, specs, numbers, files={}, custom_metadata=self._custom_metadata)
        self._retention.refused = [other for other in self._retention.refused if other != step]
        self._attempt(lambda: self._make_room(step))
        self._agree()  # before Orbax, whose barriers would wait for a process that has given up
        self._attempt(lambda: self._start(step, arrays, numbers))
        if jax.process_count() == 1:
            self._agree()

    def wait(self) -> None:
        """Returns when the save under way is on disk. Raises CheckpointError if it failed on any process."""
        if self._saving is not None or self._failure is not None:
            self._join()
            self._agree()

    def restore(self, abstract: PyTree) -> tuple[int, PyTree] | None:
        """Restores the newest good checkpoint onto the shardings of `abstract`; None where none was saved.

        Each checkpoint that is refused on the way is named in one warning.

        Args:
          abstract: a pytree of jax.ShapeDtypeStruct, each with a sharding.

        Raises:
          CheckpointError: there are checkpoints and none is good, or the good one has other leaves.
        """
        step = self._choose()
        return None if step is None else (step, self._read(step, abstract, partial=False))

    def restore_partial(self, abstract: PyTree, step: int | None = None) -> tuple[int, PyTree]:
        """Restores only the top-level entries that `abstract` has, e.g. {"params": ...} for an evaluation.

        Args:
          abstract: a dict or dataclass of jax.ShapeDtypeStruct, each with a sharding.
          step: the step to read; by default the newest good one.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged, or its entries differ from `abstract`.
        """
        chosen = self._choose(step)
        if chosen is None:
            raise CheckpointError(
                f"there is no checkpoint in {self.directory}: train first, or give another work directory"
            )
        return chosen, self._read(chosen, abstract, partial=True)

    def steps(self) -> list[int]:
        """Steps on disk from old to new, good or not."""
        return list(step_directories(self.directory))

    def newest_good(self, at_most: int | None = None) -> int | None:
        """The newest step (up to `at_most`) whose checkpoint is good, verified; None without any.

        Raises CheckpointError like restore, unless `at_most` is given.
        """
        try:
            return self._choose(at_most=at_most)
        except CheckpointError as error:
            if at_most is None:
                raise
            logging.warning("%s", error)
            return None

    def metadata(self, step: int) -> dict[str, Any]:
        """What is known of a checkpoint without reading its arrays.

        Returns "step", "metrics", "custom_metadata", "bytes" on disk, and "tree": nested plain dicts of jax.ShapeDtypeStruct
        without shardings. Raises CheckpointError.
        """
        manifest = manifest_lib.read_manifest(self._directory_of(step))
        return {
            "step": step,
            "metrics": dict(manifest.metrics),
            "custom_metadata": dict(manifest.custom_metadata),
            "bytes": manifest.num_bytes,
            "tree": leaf_lib.abstract_tree(manifest.leaves),
        }

    def close(self) -> None:
        """Waits for the save under way and releases Orbax's threads. Raises CheckpointError as wait does."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
                return
            self._join()  # without _agree: the other processes may not be failing
            if self._failure is not None:
                logging.error("%s", self._failure)
        finally:
            if "_manager" in vars(self):  # it is made when it is first needed
                self._manager.close()

    def _make_room(self, step: int) -> None:
        """Removes what was interrupted, and the refused checkpoint that this one replaces."""
        if jax.process_index() == 0:
            make_directory(self.directory)
            for path in [*leftovers(self.directory), *directories_of(self.directory, step)]:
                if path.exists():
                    path.rmtree()

    def _start(self, step: int, arrays: Mapping[str, jax.Array], metrics: Mapping[str, float]) -> None:
        self._manager.reload()
        request = ocp.args.Composite(**{_ARRAYS: ocp.args.PyTreeSave(dict(arrays))})
        self._manager.save(step, args=request, metrics=dict(metrics), force=True)

    def _write_manifest(self) -> None:
        """Called by Orbax on the first process, in its thread, when the arrays are written and before it commits the step."""
        assert self._saving is not None
        directory = temporary_directory(self.directory, self._saving.step)
        manifest = dataclasses.replace(self._saving, files=manifest_lib.compute_checksums(directory))
        manifest_lib.write_manifest(directory, manifest)

    def _join(self) -> None:
        """Waits for this process's part of the save under way, and notes whether it failed."""
        if self._saving is None:
            return
        step, error = self._saving.step, None
        try:
            self._manager.wait_until_finished()
        except Exception as raised:  # Orbax and tensorstore raise what they like
            error = raised
        committed = (self.directory / step_name(step) / MANIFEST).exists()
        # Without an error the first process decides: the others may see the file system late.
        if not committed and (error is not None or jax.process_index() == 0):
            self._save_failed(error or InterruptedError("it was interrupted"))
            return
        self._saving = None
        try:
            if jax.process_index() == 0:
                self._on_saved(step)
                for path in self._retention.obsolete:
                    path.rmtree()
            if error is not None:
                raise error
        except Exception as not_removed:
            self._failure = CheckpointError(
                f"an old checkpoint in {self.directory} could not be removed: {_cause(self.directory, not_removed)}; "
                "allow removal there or keep more checkpoints, the newest is saved"
            )
            self._failure.__cause__ = not_removed

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._save_failed(error)

    def _save_failed(self, error: Exception) -> None:
        """Notes the failure in one sentence, and removes the attempt."""
        assert self._saving is not None
        step, self._saving = self._saving.step, None
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # there may be nothing, or what failed is the disk
                temporary_directory(self.directory, step).rmtree(missing_ok=True)
        self._failure = CheckpointError(
            f"checkpoint {step} could not be written to {self.directory}: {_cause(self.directory, error)}; "
            "put that right and start again, the checkpoints before it are intact"
        )
        self._failure.__cause__ = error

    def _agree(self) -> None:
        """Raises on every process what failed on any."""
        failure, self._failure = self._failure, None
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.asarray(failure is not None))
            if failure is None and failed.any():
                failure = CheckpointError(
                    f"a checkpoint in {self.directory} failed on process {int(np.argmax(failed))}: "
                    "its log says why"
                )
        if failure is not None:
            self._saving = None
            raise failure

    def _choose(self, step: int | None = None, at_most: int | None = None) -> int | None:
        """`step`, or the newest good one up to `at_most`: the first process verifies, all use its answer."""
        self.wait()
        chosen, failure = None, None
        if jax.process_index() == 0:
            try:
                chosen = self._find_newest_good(at_most) if step is None else self._verify(step)
            except CheckpointError as error:
                failure = error
        if jax.process_count() > 1:
            code = _ALL_BAD if failure else _NONE if chosen is None else chosen
            code = int(multihost_utils.broadcast_one_to_all(np.asarray(code, np.int32)))
            if code == _ALL_BAD and failure is None:
                failure = CheckpointError(
                    f"the first process found no good checkpoint in {self.directory}: its log says why"
                )
            chosen = None if code in (_NONE, _ALL_BAD) else code
        if failure is not None:
            raise failure
        if chosen is not None and step is None and at_most is None:
            self._retention.refused = [other for other in self.steps() if other > chosen]
        return chosen

    def _find_newest_good(self, at_most: int | None) -> int | None:
        """Verifies from new to old, warning of each checkpoint refused; None where nothing was ever saved."""
        for path in leftovers(self.directory):
            logging.warning("%s is not used: its save or its removal was interrupted.", path)
        steps = [step for step in self.steps() if at_most is None or step <= at_most]
        for step in reversed(steps):
            try:
                return self._verify(step)
            except DamagedError as error:
                logging.warning(
                    "checkpoint %s is refused: %s; trying the one before.", error.directory, error.reason
                )
        if steps:
            raise CheckpointError(
                f"none of the {len(steps)} checkpoints in {self.directory} is good (the log says why for each): "
                "restore the directory from a copy, or move it away to start afresh"
            )
        return None

    def _verify(self, step: int) -> int:
        """The step. Its files are hashed once, whoever asks which one is good before restoring it. Raises DamagedError."""
        directory = self._directory_of(step)
        if step not in self._verified:
            manifest_lib.verify(directory)
            self._verified.add(step)
        return step

    def _directory_of(self, step: int) -> Path:
        """Raises CheckpointError where there is none."""
        directories = step_directories(self.directory)
        if step not in directories:
            there = ", ".join(str(other) for other in directories) or "nothing"
            raise CheckpointError(
                f"there is no checkpoint {step} in {self.directory}: give one it holds ({there})"
            )
        return directories[step]

    def _read(self, step: int, abstract: PyTree, *, partial: bool) -> PyTree:
        """Reads a good checkpoint like `abstract`, whole or only the top-level entries that `abstract` has.

        Raises CheckpointError at the first leaf that differs: another model is the user's mistake, never a reason
        to fall back.
        """
        directory = self._directory_of(step)
        saved = manifest_lib.read_manifest(directory).leaves
        if partial:
            names = leaf_lib.top_level_names(abstract)
            saved = {path: spec for path, spec in saved.items() if path.split("/")[0] in names}
        targets = leaf_lib.flatten(abstract)
        if difference := leaf_lib.first_difference(saved, leaf_lib.specs_of(targets)):
            raise CheckpointError(
                f"checkpoint {directory} does not fit: {difference}; "
                "use the configuration it was saved with, or another directory"
            )
        stored = leaf_lib.stored_targets(targets)
        try:
            arrays = self._read_arrays(step, stored) if stored else {}
        except Exception as error:  # verified a moment ago: the machine's or Orbax's trouble, not damage
            raise CheckpointError(
                f"checkpoint {directory} is whole but could not be read: {_first_line(error)}; "
                "check memory and the file system"
            ) from error
        return leaf_lib.unflatten(abstract, leaf_lib.from_stored(targets, arrays))

    def _read_arrays(self, step: int, targets: dict[str, jax.ShapeDtypeStruct]) -> Mapping[str, jax.Array]:
        restore_args = ocp.checkpoint_utils.construct_restore_args(targets)
        request = ocp.args.PyTreeRestore(item=targets, restore_args=restore_args, partial_restore=True)
        restored = self._manager.restore(step, args=ocp.args.Composite(**{_ARRAYS: request}))
        arrays: Mapping[str, jax.Array] = restored[_ARRAYS]
        return arrays


class _Manager(ocp.CheckpointManager):
    """Orbax's, which would ask at which step to stop in its thread, too, about a step that is past by then."""

    def reached_preemption(self, step: int) -> bool:
        """training.shutdown asks that, once a step."""
        return False


def _cause(directory: Path, error: Exception) -> str:
    """Why something could not be written or removed, as part of a sentence."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        free = shutil.disk_usage(directory if directory.exists() else directory.parent).free
        return f"the disk is full ({free / 1e6:.0f} MB free now that the attempt is removed)"
    if isinstance(error, OSError):
        return f"{error.strerror or error}"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    """Another library's error inside one sentence: its type and the first line of its message."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
