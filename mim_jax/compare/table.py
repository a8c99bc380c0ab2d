"""The numbers of a comparison, from its results alone: the values of each arm in each column, and what failed."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mim_jax.compare.config import PRETRAIN, Column, ComparisonConfig
from mim_jax.compare.results import DONE, FAILED, ResultStore, StageResult
from mim_jax.compare.stages import calibration_key, result_key
from mim_jax.compare.statistics import SeedMean, seed_mean

WAITING, NOT_RUN, NO_VALUE = "waiting", "not run", "–"
REASON_LENGTH = 160
"""Characters of a failure's reason in the table; all of it is in the results."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An arm in a column.

    values: by seed. notes: about the seeds without a value; short_notes: without the reasons of failures. correct: per
    seed, whether each test image was classified correctly, [N].
    """

    values: Mapping[int, float]
    notes: tuple[str, ...]
    short_notes: tuple[str, ...]
    correct: tuple[npt.NDArray[np.bool_], ...]


class Table:
    """Entries by arm and column."""

    def __init__(self, comparison: ComparisonConfig, results: ResultStore) -> None:
        self.comparison, self.results = comparison, results
        self.columns = comparison.table_columns
        self.qualities = [column for column in self.columns if column.better != "plain"]
        self.entries = {
            (arm, column): self._entry(arm, column) for arm in comparison.arm_names for column in self.columns
        }

    def seed_means(self, column: Column) -> dict[str, SeedMean]:
        """By arm, of those that have values in the column."""
        values = {arm: [*self.entries[arm, column].values.values()] for arm in self.comparison.arm_names}
        return {arm: seed_mean(of_arm) for arm, of_arm in values.items() if of_arm}

    def text(self, arm: str, column: Column) -> str:
        """An entry on one line."""
        number, notes = self.number(arm, column), self.entries[arm, column].notes
        return "; ".join([number, *notes] if number else notes)

    def number(self, arm: str, column: Column) -> str:
        """The mean over seeds, of a quality with its interval; '' where there is no value yet."""
        values = [*self.entries[arm, column].values.values()]
        if not values:
            return ""
        digits = self._num_decimals(column)
        mean, half_width = seed_mean(values)
        shown = f"{mean:.{digits}f}"
        return (
            shown if half_width is None or column.better == "plain" else f"{shown} ± {half_width:.{digits}f}"
        )

    def failures(self) -> list[str]:
        """A line for each stage that failed, with its reason in full."""
        return [
            f"{arm}, seed {seed}, {stage}: {result.reason}"
            for arm, seed, stage in self._stages()
            for status, result in [self.status(arm, seed, stage)]
            if result is not None and status == FAILED
        ]

    def status_counts(self) -> dict[str, int]:
        """Status -> number of stages."""
        return dict(collections.Counter(self.status(*stage)[0] for stage in self._stages()))

    def not_started(self, arm: str) -> bool:
        """Whether nothing of an arm has run."""
        return all(self.status(*stage)[0] == WAITING for stage in self._stages() if stage[0] == arm)

    def status(self, arm: str, seed: int, stage: str) -> tuple[str, StageResult | None]:
        """done, failed, not run (an earlier stage failed) or waiting; and the stage's result."""
        calibration = self.results.get(calibration_key(arm))
        if calibration is not None and calibration.status == FAILED and self.comparison.budget == "seconds":
            failed = dataclasses.replace(calibration, reason=f"calibration: {calibration.reason}")
            return (FAILED, failed) if stage == PRETRAIN else (NOT_RUN, None)
        for name in self.comparison.stages:
            result = self.results.get(result_key(arm, seed, name))
            if name == stage:
                ended = result is not None and result.status in (DONE, FAILED)
                return (result.status if result and ended else WAITING), result
            if result is not None and result.status == FAILED:
                return NOT_RUN, None
        raise KeyError(stage)

    def _stages(self) -> itertools.product:
        return itertools.product(self.comparison.arm_names, self.comparison.seeds, self.comparison.stages)

    def _num_decimals(self, column: Column) -> int:
        values = [
            value for arm in self.comparison.arm_names for value in self.entries[arm, column].values.values()
        ]
        if column.better == "plain" and all(float(value).is_integer() for value in values):
            return 0  # counts
        return num_decimals(values)

    def _entry(self, arm: str, column: Column) -> Entry:
        values: dict[int, float] = {}
        correct: list[npt.NDArray[np.bool_]] = []
        notes: dict[str, list[int]] = {}  # note -> seeds
        short_notes: dict[str, list[int]] = {}
        first = next(other for other in self.columns if other.stage == column.stage) == column
        for seed in self.comparison.seeds:
            status, result = self.status(arm, seed, column.stage)
            if result is not None and status == DONE and column.key in result.values:
                values[seed] = column.scale * result.values[column.key]
                if (per_image := result.correct_images(column.key)) is not None:
                    correct.append(per_image)
                continue
            # The state of a stage is noted in its first column, and only for the first stage of a cell that waits.
            if status in (WAITING, NOT_RUN) and (not first or self._earlier_waits(arm, seed, column)):
                continue
            note = NO_VALUE if status == DONE else status
            reason = f": {_shortened(result.reason)}" if result and status == FAILED and first else ""
            notes.setdefault(note + reason, []).append(seed)
            short_notes.setdefault(note, []).append(seed)
        per_seed = tuple(correct) if len(correct) == len(values) else ()
        return Entry(values, self._with_seeds(notes), self._with_seeds(short_notes), per_seed)

    def _earlier_waits(self, arm: str, seed: int, column: Column) -> bool:
        earlier = self.comparison.stages[: self.comparison.stages.index(column.stage)]
        return any(self.status(arm, seed, stage)[0] == WAITING for stage in earlier)

    def _with_seeds(self, notes: Mapping[str, list[int]]) -> tuple[str, ...]:
        """Each note with its seeds, unless these are all."""
        return tuple(
            note
            if len(seeds) == len(self.comparison.seeds)
            else f"{note} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
            for note, seeds in notes.items()
        )


def num_decimals(values: Sequence[float]) -> int:
    """Decimals that numbers of this size are shown with."""
    largest = max((abs(value) for value in values), default=0.0)
    return next((digits for limit, digits in ((1000, 0), (100, 1), (1, 2)) if largest >= limit), 4)


def _shortened(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…"
