"""The steps in a checkpoint directory: `00000030` is one, `00000030.orbax-checkpoint-tmp` one being written. Which of them Orbax keeps.

Orbax writes a step under its temporary name and renames it once it is complete: a kill at any time leaves either all of it or nothing
that counts. A bucket has no renames: there a step counts once its manifest, written last, is there.

Runs of earlier versions of mim_jax may hold `00000030.1`, step 30 saved again, which replaces `00000030`; `unfinished-` and `discarded-`
are the names of what they left behind when they were killed.
"""

import dataclasses
import datetime
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils.epath import Path
from orbax.checkpoint import checkpoint_managers

from mim_jax.storage import StorageError, is_bucket, parse_path
from mim_jax.training.checkpoints.manifest import MANIFEST, CheckpointError, DamagedError, read_manifest

_NAME = re.compile(r"(\d{8,})(?:\.(\d+))?")
_LEFTOVER = re.compile(r"\d{8,}\.orbax-checkpoint-tmp.*|(unfinished|discarded)-.*")


def step_name(step: int) -> str:
    """Name of a step's directory."""
    return f"{step:08d}"


def temporary_directory(directory: Path, step: int) -> Path:
    """Where Orbax writes a step until it commits it."""
    final = directory / step_name(step)
    temporary: Path = (
        ocp.path.atomicity_defaults.get_default_temporary_path_class(final).from_final(final).get()
    )
    return temporary


def step_directories(directory: Path) -> dict[int, Path]:
    """The directories of the steps that count, good or not, from old to new; empty where there is no such directory."""
    numbered = {
        (step, generation): path
        for step, generation, path in _numbered(directory)
        if not is_bucket(directory) or (path / MANIFEST).exists()
    }
    return {step: numbered[step, generation] for step, generation in sorted(numbered)}


def directories_of(directory: Path, step: int) -> list[Path]:
    """All directories of one step, also those that do not count."""
    return [path for number, _, path in _numbered(directory) if number == step]


def leftovers(directory: Path) -> list[Path]:
    """What saves and removals have left behind that were interrupted."""
    if is_bucket(directory):
        return [path for _, _, path in _numbered(directory) if not (path / MANIFEST).exists()]
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in paths if _LEFTOVER.fullmatch(path.name)]


def _numbered(directory: Path) -> Iterator[tuple[int, int, Path]]:
    """Step, generation and path of every directory with a step's name."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if (match := _NAME.fullmatch(path.name)) and path.is_dir():
            yield int(match[1]), int(match[2] or 0), path


def checked_directory(directory: str | os.PathLike[str]) -> Path:
    """The absolute path of a checkpoint directory, which need not exist. Raises CheckpointError."""
    try:
        path = parse_path(directory, "the directory of checkpoints")
    except StorageError as error:
        raise CheckpointError(str(error)) from error
    if is_bucket(path):
        return path
    path = Path(os.path.abspath(path))
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file: give a directory for the checkpoints")
    return path


def read_custom_metadata(directory: Path) -> dict[str, Any] | None:
    """That of the newest checkpoint that has any (`Checkpoints(custom_metadata=)`); its arrays are not verified."""
    for path in reversed(step_directories(directory).values()):
        try:
            metadata = read_manifest(path).custom_metadata
        except DamagedError:
            continue
        if metadata:
            return dict(metadata)
    return None


class StepNames(ocp.path.step.NameFormat[ocp.path.step.Metadata]):
    """Tells Orbax which steps there are."""

    def build_name(self, step: int) -> str:
        return step_name(step)

    def find_all(self, base_path: Path) -> Iterator[ocp.path.step.Metadata]:
        for step, path in step_directories(Path(base_path)).items():
            yield _StepMetadata(step=step, path=path)

    def find_step(self, base_path: Path, step: int) -> ocp.path.step.Metadata:
        path = step_directories(Path(base_path)).get(step)
        if path is None:
            raise ValueError(f"there is no step {step} in {base_path}")
        return _StepMetadata(step=step, path=path)


class _StepMetadata(ocp.path.step.Metadata):
    @property
    def commit_timestamp(self) -> datetime.datetime:
        """Nothing here depends on it, and checkpoints of earlier versions do not say it."""
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)


class Retention(checkpoint_managers.PreservationPolicy):
    """Which steps Orbax keeps: the last, every so many, the best; those that restore has refused count for none of these.

    Args:
      directory: of the run's checkpoints.
      keep_last: how many of the newest stay.
      keep_every: steps that are multiples stay for ever; 0 for none.
      best_metric: the step with its largest value stays; of equal ones the later, and NaN is never the best.

    Attributes:
      refused: steps that were damaged when the run was restored from an earlier one.
      obsolete: in a bucket, what is to be removed after the save under way.
    """

    def __init__(self, directory: Path, keep_last: int, keep_every: int, best_metric: str | None) -> None:
        if keep_last < 1 or keep_every < 0:
            raise CheckpointError(
                f"checkpoints cannot be kept with keep_last={keep_last}, keep_every={keep_every}: give at least 1, and at least 0"
            )
        policies: list[checkpoint_managers.PreservationPolicy] = [checkpoint_managers.LatestN(n=keep_last)]
        if keep_every:
            policies.append(checkpoint_managers.EveryNSteps(interval_steps=keep_every))
        if best_metric is not None:
            best = checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics[best_metric],
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            policies.append(best)
        self._policy = checkpoint_managers.AnyPreservationPolicy(policies)
        self._directory, self._best_metric = directory, best_metric
        self.refused: Collection[int] = ()
        self.obsolete: list[Path] = []

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """Whether each stays. The newest is the one being saved."""
        if jax.process_index() > 0:  # Orbax removes on the first process only
            return [True] * len(checkpoints)
        directories = step_directories(self._directory)
        newest = checkpoints[-1].step
        trusted = sorted(
            (self._with_metrics(info, directories) for info in checkpoints if info.step not in self.refused),
            key=lambda info: info.step,
        )
        flags = self._policy.should_preserve(trusted, context=context)
        kept = {info.step for info, flag in zip(trusted, flags, strict=True) if flag}
        # Refused ones after this step stay until the run has passed them: a disk may fail only once.
        kept |= {step for step in self.refused if step > newest}
        if is_bucket(self._directory):  # Orbax's removal there asks for rights that a run need not have
            self.obsolete = [path for step, path in directories.items() if step not in kept]
            return [True] * len(checkpoints)
        return [info.step in kept for info in checkpoints]

    def _with_metrics(self, info: Any, directories: dict[int, Path]) -> Any:
        """The CheckpointInfo with its best_metric, from the manifest of a step that is saved; without, where it is no number."""
        if self._best_metric is None:
            return info
        metrics = info.metrics
        if info.step in directories:
            try:
                metrics = read_manifest(directories[info.step]).metrics
            except DamagedError as error:
                logging.warning("checkpoint %s cannot be the best: %s.", error.directory, error.reason)
                metrics = None
        if metrics is None or math.isnan(metrics.get(self._best_metric, math.nan)):
            return dataclasses.replace(info, metrics=None)
        return dataclasses.replace(info, metrics=metrics)
