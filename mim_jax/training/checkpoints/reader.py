"""Finds the newest good checkpoint, and reads arrays onto the shardings asked for."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils.epath import Path

from mim_jax.training.checkpoints import files
from mim_jax.training.checkpoints import tree as trees
from mim_jax.training.checkpoints.files import Entry
from mim_jax.training.checkpoints.manifest import (
    CheckpointError,
    DamagedError,
    first_line,
    read_manifest,
    verify,
)
from mim_jax.training.checkpoints.tree import PyTree
from mim_jax.training.checkpoints.writer import ARRAYS


def choose(directory: Path, step: int | None) -> Entry | None:
    """The newest good checkpoint, or for a step that of the step, verified. Raises CheckpointError."""
    return newest_good(directory) if step is None else good_entry(directory, step)


def newest_good(directory: Path) -> Entry | None:
    """Verifies from new to old, warning of each checkpoint refused; None where nothing was ever saved.

    Raises CheckpointError where there are checkpoints and none is good.
    """
    for name in files.unfinished(directory):
        logging.warning("%s is not used: its save was interrupted.", directory / name)
    found = files.entries(directory)
    for entry in reversed(found):
        try:
            verify(directory / entry.name)
        except (DamagedError, OSError) as error:
            logging.warning(
                "checkpoint %s is refused: %s; trying the one before.", directory / entry.name, error
            )
        else:
            return entry
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {directory} is good (the log says why for each): "
            "restore the directory from a copy, or move it away to start afresh"
        )
    return None


def saved_about(directory: Path) -> dict[str, Any] | None:
    """What the newest checkpoint that says anything says of its run (`Checkpoints(about=)`); its arrays are not verified."""
    for entry in reversed(files.entries(directory)):
        try:
            about = read_manifest(directory / entry.name).about
        except DamagedError:
            continue
        if about:
            return dict(about)
    return None


def good_entry(directory: Path, step: int) -> Entry:
    """The checkpoint of one step, verified. Raises CheckpointError where it is missing or damaged."""
    entry = last_entry(directory, step)
    try:
        verify(directory / entry.name)
    except (DamagedError, OSError) as error:
        raise damaged(directory, entry, error) from error
    return entry


def last_entry(directory: Path, step: int) -> Entry:
    """The last checkpoint saved for `step`, good or not. Raises CheckpointError where there is none."""
    found = files.entries(directory)
    of_step = [entry for entry in found if entry.step == step]
    if not of_step:
        there = ", ".join(str(entry.step) for entry in found) or "nothing"
        raise CheckpointError(f"there is no checkpoint {step} in {directory}: give one it holds ({there})")
    return of_step[-1]


def damaged(directory: Path, entry: Entry, reason: Exception) -> CheckpointError:
    """The error for a checkpoint that was asked for by its step."""
    return CheckpointError(f"checkpoint {directory / entry.name} is damaged: {reason}; use another step")


def read(
    orbax: ocp.AsyncCheckpointer, directory: Path, entry: Entry, abstract: PyTree, *, partial: bool
) -> PyTree:
    """Reads a good checkpoint like `abstract`, whole or only the top-level entries that `abstract` has.

    Raises CheckpointError at the first leaf that differs: another model is the user's mistake, never a reason
    to fall back.
    """
    saved = read_manifest(directory / entry.name).leaves
    if partial:
        names = trees.top_level_names(abstract)
        saved = {path: spec for path, spec in saved.items() if path.split("/")[0] in names}
    wanted = trees.flatten(abstract)
    if (difference := trees.first_difference(saved, trees.describe(wanted))) is not None:
        raise CheckpointError(
            f"checkpoint {directory / entry.name} does not fit: {difference}; "
            "use the configuration it was saved with, or another directory"
        )
    targets = trees.stored_targets(wanted)
    try:
        arrays = _read_arrays(orbax, directory / entry.name / ARRAYS, targets)
    except Exception as error:  # verified a moment ago: this is the machine's or Orbax's trouble, not damage
        raise CheckpointError(
            f"checkpoint {directory / entry.name} is whole but could not be read: {first_line(error)}; "
            "check memory and the file system"
        ) from error
    return trees.unflatten(abstract, trees.restored(wanted, arrays))


def _read_arrays(
    orbax: ocp.AsyncCheckpointer, path: Path, targets: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    if not targets:
        return {}
    how = {
        name: ocp.ArrayRestoreArgs(sharding=target.sharding, global_shape=target.shape, dtype=target.dtype)
        for name, target in targets.items()
    }
    request = ocp.args.PyTreeRestore(item=targets, restore_args=how, partial_restore=True)
    return orbax.restore(path, args=request)
