"""Checkpoints that survive: asynchronous, atomic, verified when read, restored onto any mesh.

    with Checkpoints(workdir / "checkpoints", keep_last=2) as checkpoints:
        if (found := checkpoints.restore(abstract_state)) is not None:
            step, state = found
        ...
        checkpoints.save(step, state, {"eval/knn_top1": 71.2})

Orbax moves the arrays; the layout, the commit, the checksums and the choice of a good one are ours (Orbax
counts truncated and emptied checkpoints as present, and restores flipped bytes as NaN). On several processes
every method that writes or restores is called by all, and the directory is on a file system they share.
"""

import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils.epath import Path
from jax.experimental import multihost_utils

from mim_jax.training.checkpoints import files, reader
from mim_jax.training.checkpoints import tree as trees
from mim_jax.training.checkpoints.files import Entry
from mim_jax.training.checkpoints.manifest import CheckpointError, DamagedError, Manifest, read_manifest
from mim_jax.training.checkpoints.retention import best_step, steps_to_keep
from mim_jax.training.checkpoints.tree import PyTree
from mim_jax.training.checkpoints.writer import Writer

__all__ = ["CheckpointError", "Checkpoints"]

_NONE, _ALL_BAD = -1, -2


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Args:
      directory: created by the first save.
      keep_last: how many of the newest stay on disk, at least 1.
      keep_every: steps that are multiples stay for ever; 0 for none.
      best_metric: the checkpoint saved with the best value of this metric stays as well.
      best_mode: "max" or "min".
      about: what every checkpoint says of its run, as JSON (`saved_about`).
      on_saved: called with the step, on the first process in the writing thread, once a checkpoint counts.
      asynchronous: whether save returns once the arrays have left the device and a thread goes on writing.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        best_metric: str | None = None,
        best_mode: str = "max",
        about: Mapping[str, Any] | None = None,
        on_saved: Callable[[int], None] = lambda step: None,
        asynchronous: bool = True,
    ) -> None:
        if keep_last < 1 or keep_every < 0 or best_mode not in ("max", "min"):
            raise CheckpointError(
                f"checkpoints cannot be kept with keep_last={keep_last}, keep_every={keep_every}, "
                f"best_mode={best_mode!r}: give at least 1, at least 0, and max or min"
            )
        self.directory: Path = files.checked_directory(directory)
        self._keep_last, self._keep_every = keep_last, keep_every
        self._best_metric, self._best_mode = best_metric, best_mode
        self._about, self._on_saved = dict(about or {}), on_saved
        self._asynchronous = asynchronous
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
        self._writer = Writer(self.directory, self._orbax, self._thin_out)
        self._refused: frozenset[Entry] = frozenset()

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Saves `state`, whose buffers may be donated once this returns; a step saved again is replaced.

        Raises CheckpointError for a state that cannot be saved, a step older than the newest checkpoint, and
        for the failure of the save before, which is waited for.
        """
        self.wait()
        if step < 0:
            raise CheckpointError(f"step {step} cannot be saved in {self.directory}: give 0 or more")
        newest = max((entry.step for entry in self._trusted()), default=step)
        if newest > step:
            raise CheckpointError(
                f"step {step} is older than checkpoint {newest} in {self.directory}: restore before saving, "
                "or start in an empty directory"
            )
        flat = trees.flatten(state)
        arrays = trees.stored(flat)
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        self._writer.start(Manifest(step, trees.describe(flat), numbers, files={}, about=self._about), arrays)
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Returns when the save under way is on disk. Raises CheckpointError if it failed on any process."""
        self._writer.wait()

    def restore(self, abstract: PyTree) -> tuple[int, PyTree] | None:
        """Restores the newest good checkpoint onto the shardings of `abstract`; None where none was saved.

        Each checkpoint that is refused on the way is named in one warning.

        Args:
          abstract: a pytree of jax.ShapeDtypeStruct, each with a sharding.

        Raises:
          CheckpointError: there are checkpoints and none is good, or the good one has other leaves.
        """
        entry = self._choose()
        return None if entry is None else (entry.step, self._read(entry, abstract, partial=False))

    def restore_partial(self, abstract: PyTree, step: int | None = None) -> tuple[int, PyTree]:
        """Restores only the top-level entries that `abstract` has, e.g. {"params": ...} for an evaluation.

        Args:
          abstract: a dict or dataclass of jax.ShapeDtypeStruct, each with a sharding.
          step: the step to read; by default the newest good one.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged, or its entries differ from `abstract`.
        """
        entry = self._choose(step)
        if entry is None:
            raise CheckpointError(
                f"there is no checkpoint in {self.directory}: train first, or give another work directory"
            )
        return entry.step, self._read(entry, abstract, partial=True)

    def steps(self) -> list[int]:
        """Steps on disk from old to new, good or not."""
        return sorted({entry.step for entry in files.entries(self.directory)})

    def newest_good(self) -> int | None:
        """The step restore would choose, verified; None without any. Raises CheckpointError like it."""
        entry = self._choose()
        return None if entry is None else entry.step

    def newest_good_before(self, step: int) -> int | None:
        """The newest step up to `step` whose checkpoint is good; None without any. Damaged ones are named in warnings."""
        for older in reversed([one for one in self.steps() if one <= step]):
            try:
                self._choose(older)
            except CheckpointError as error:
                logging.warning("%s", error)
            else:
                return older
        return None

    def best(self) -> int | None:
        """The step on disk with the best `best_metric` (not verified); None where none has one."""
        return best_step(self._scores({entry.step: entry for entry in self._trusted()}), self._best_mode)

    def metadata(self, step: int) -> dict[str, Any]:
        """What is known of a checkpoint without reading its arrays.

        Returns "step", "metrics", "about", "bytes" on disk, and "tree": nested plain dicts of jax.ShapeDtypeStruct
        without shardings. Raises CheckpointError.
        """
        entry = reader.last_entry(self.directory, step)
        try:
            manifest = read_manifest(self.directory / entry.name)
        except DamagedError as error:
            raise reader.damaged(self.directory, entry, error) from error
        tree = trees.nest(manifest.leaves)
        return {
            "step": step,
            "metrics": dict(manifest.metrics),
            "about": dict(manifest.about),
            "bytes": manifest.size,
            "tree": tree,
        }

    def close(self) -> None:
        """Waits for the save under way and releases Orbax's threads. Raises CheckpointError as wait does."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # the other processes may not be failing, so nothing here may wait for them
            self._writer.abandon()
            self._orbax.close()

    def _read(self, entry: Entry, abstract: PyTree, *, partial: bool) -> PyTree:
        return reader.read(self._orbax, self.directory, entry, abstract, partial=partial)

    def _choose(self, step: int | None = None) -> Entry | None:
        """The newest good checkpoint, or that of `step`: the first process verifies, all take its word."""
        self.wait()
        chosen, failure = None, None
        if jax.process_index() == 0:
            try:
                chosen = reader.choose(self.directory, step)
            except CheckpointError as error:
                failure = error
        if jax.process_count() > 1:
            chosen, failure = self._broadcast(chosen, failure)
        if failure is not None:
            raise failure
        if chosen is not None and step is None:
            self._refused = frozenset(entry for entry in files.entries(self.directory) if entry > chosen)
        return chosen

    def _broadcast(
        self, chosen: Entry | None, failure: CheckpointError | None
    ) -> tuple[Entry | None, CheckpointError | None]:
        word = chosen or (_ALL_BAD if failure else _NONE, 0)
        first, generation = (int(n) for n in multihost_utils.broadcast_one_to_all(np.asarray(word, np.int32)))
        if first == _ALL_BAD:
            text = f"the first process found no good checkpoint in {self.directory}: its log says why"
            return None, failure or CheckpointError(text)
        return (None if first == _NONE else Entry(first, generation)), None

    def _trusted(self) -> list[Entry]:
        """Checkpoints on disk from old to new, without those that restore has refused."""
        return [entry for entry in files.entries(self.directory) if entry not in self._refused]

    def _scores(self, entries: Mapping[int, Entry]) -> dict[int, float]:
        scores: dict[int, float] = {}
        if self._best_metric is None:
            return scores
        for step, entry in entries.items():
            try:
                metrics = read_manifest(self.directory / entry.name).metrics
            except DamagedError as error:
                logging.warning("checkpoint %s cannot be the best: %s.", self.directory / entry.name, error)
                continue
            if self._best_metric in metrics:
                scores[step] = metrics[self._best_metric]
        return scores

    def _thin_out(self, step: int) -> None:
        """Once `step` is on disk, removes what need not be kept, what it replaces, and those refused."""
        self._on_saved(step)
        current = {entry.step: entry for entry in self._trusted()}  # later generations win
        kept = steps_to_keep(
            current,
            self._scores(current),
            keep_last=self._keep_last,
            keep_every=self._keep_every,
            best_mode=self._best_mode,
        )
        # Refused ones after this step stay until the run has passed them: a disk may fail only once.
        later = {entry for entry in self._refused if entry.step > step}
        kept_entries = {current[kept_step] for kept_step in kept} | later
        files.discard(
            self.directory, [entry for entry in files.entries(self.directory) if entry not in kept_entries]
        )
