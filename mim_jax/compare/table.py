"""The table of a comparison, made from its results alone: what each arm reached in each column."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping

from mim_jax.compare.calibration import calibration_key
from mim_jax.compare.noise import Summary, decimals, summarise
from mim_jax.compare.protocol import PRETRAIN, Column, Protocol
from mim_jax.compare.records import DONE, FAILED, Record, Records
from mim_jax.compare.stages import result_key
from mim_jax.training.watching.log import STANDARD_ERROR

WAITING, NOT_RUN, ABSENT = "waiting", "not run", "–"
REASON_LENGTH = 160
"""Characters of a failure's reason that the table shows; all of it is in the results."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An arm in a column."""

    values: Mapping[int, float]  # seed -> value, of the seeds that have one
    notes: tuple[str, ...]  # what is to be said of the others
    brief: tuple[str, ...] = ()  # the same without the reasons of failures
    errors: tuple[float, ...] = ()  # standard errors of the values that have one

    @property
    def summary(self) -> Summary | None:
        return summarise(list(self.values.values()), self.errors) if self.values else None


class Table:
    """Entries by arm and column."""

    def __init__(self, protocol: Protocol, records: Records) -> None:
        self.protocol, self.records = protocol, records
        self.columns = protocol.table
        self.entries = {
            (arm, column): self._entry(arm, column) for arm in protocol.chosen for column in self.columns
        }

    def summaries(self, column: Column) -> dict[str, Summary]:
        """Arm -> summary, of the arms that have values in the column."""
        found = {arm: self.entries[arm, column].summary for arm in self.protocol.chosen}
        return {arm: summary for arm, summary in found.items() if summary is not None}

    def text(self, arm: str, column: Column) -> str:
        """An entry as one line."""
        number, notes = self.number(arm, column), self.entries[arm, column].notes
        return "; ".join([number, *notes] if number else notes)

    def number(self, arm: str, column: Column) -> str:
        """The number of an entry; '' = there is none yet."""
        summary = self.entries[arm, column].summary
        if summary is None:
            return ""
        digits = self._decimals(column)
        shown = f"{summary.mean:.{digits}f}"
        return shown if summary.seeds == 1 else f"{shown} ± {summary.half_range:.{digits}f}"

    def failures(self) -> list[str]:
        """A line for each stage that failed: which, and its reason in full."""
        found = []
        for arm, seed, stage in itertools.product(
            self.protocol.chosen, self.protocol.seeds, self.protocol.stages
        ):
            status, record = self.status(arm, seed, stage)
            if record is not None and status == FAILED:
                found.append(f"{arm}, seed {seed}, {stage}: {record.reason}")
        return found

    def counts(self) -> dict[str, int]:
        """How many stages of all cells have which status."""
        stages = itertools.product(self.protocol.chosen, self.protocol.seeds, self.protocol.stages)
        return dict(collections.Counter(self.status(*stage)[0] for stage in stages))

    def untouched(self, arm: str) -> bool:
        """Whether nothing of an arm has been run."""
        stages = itertools.product((arm,), self.protocol.seeds, self.protocol.stages)
        return all(self.status(*stage)[0] == WAITING for stage in stages)

    def status(self, arm: str, seed: int, stage: str) -> tuple[str, Record | None]:
        """done, failed, not run (an earlier stage failed) or waiting; and the stage's record."""
        trial = self.records.get(calibration_key(arm))
        if trial is not None and trial.status == FAILED and self.protocol.budget == "seconds":
            first = dataclasses.replace(trial, reason=f"calibration: {trial.reason}")
            return (FAILED, first) if stage == PRETRAIN else (NOT_RUN, None)
        for name in self.protocol.stages:
            record = self.records.get(result_key(arm, seed, name))
            if name == stage:
                ended = record is not None and record.status in (DONE, FAILED)
                return (record.status if record and ended else WAITING), record
            if record is not None and record.status == FAILED:
                return NOT_RUN, None
        raise KeyError(stage)

    def _decimals(self, column: Column) -> int:
        values = [
            value for arm in self.protocol.chosen for value in self.entries[arm, column].values.values()
        ]
        if column.better == "plain" and all(float(value).is_integer() for value in values):
            return 0  # counts
        return decimals(values)

    def _entry(self, arm: str, column: Column) -> Entry:
        values: dict[int, float] = {}
        errors: list[float] = []
        notes: dict[str, list[int]] = {}
        brief: dict[str, list[int]] = {}
        # What became of a stage is said in its first column.
        first = next(other for other in self.columns if other.stage == column.stage) == column
        for seed in self.protocol.seeds:
            status, record = self.status(arm, seed, column.stage)
            if record is not None and status == DONE and column.key in record.values:
                values[seed] = column.scale * record.values[column.key]
                if (error := record.values.get(f"{column.key}{STANDARD_ERROR}")) is not None:
                    errors.append(column.scale * error)
                continue
            if status in (WAITING, NOT_RUN) and (not first or self._goes_without_saying(arm, seed, column)):
                continue
            said = ABSENT if status == DONE else status
            reason = f": {shortened(record.reason)}" if record and status == FAILED and first else ""
            notes.setdefault(said + reason, []).append(seed)
            brief.setdefault(said, []).append(seed)
        return Entry(values, self._with_seeds(notes), self._with_seeds(brief), tuple(errors))

    def _goes_without_saying(self, arm: str, seed: int, column: Column) -> bool:
        """Whether a stage waits for one that waits itself."""
        before = self.protocol.stages[: self.protocol.stages.index(column.stage)]
        return any(self.status(arm, seed, stage)[0] == WAITING for stage in before)

    def _with_seeds(self, notes: Mapping[str, list[int]]) -> tuple[str, ...]:
        """Each note with the seeds that it is about, unless these are all."""
        return tuple(
            note
            if len(seeds) == len(self.protocol.seeds)
            else f"{note} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
            for note, seeds in notes.items()
        )


def shortened(reason: str) -> str:
    """A reason on one short line."""
    line = " ".join(reason.split())
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…"
