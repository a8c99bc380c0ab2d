"""The table of a comparison, made from its results alone: what each arm reached in each column."""

import dataclasses
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
        entry = self.entries[arm, column]
        parts = list(entry.notes)
        if summary := entry.summary:
            digits = self._decimals(column)
            shown = f"{summary.mean:.{digits}f}"
            if summary.seeds > 1:
                shown += f" ± {summary.half_range:.{digits}f}"
            parts.insert(0, shown)
        return "; ".join(parts)

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
        notes: dict[str, list[str]] = {}
        # A failure is explained in the first column of its stage.
        explains = next(other for other in self.columns if other.stage == column.stage) == column
        for seed in self.protocol.seeds:
            status, record = self.status(arm, seed, column.stage)
            if record is not None and status == DONE and column.key in record.values:
                values[seed] = column.scale * record.values[column.key]
                if (error := record.values.get(f"{column.key}{STANDARD_ERROR}")) is not None:
                    errors.append(column.scale * error)
                continue
            if record is not None and status == FAILED:
                status = f"failed: {shortened(record.reason)}" if explains else "failed"
            notes.setdefault(ABSENT if status == DONE else status, []).append(str(seed))
        return Entry(
            values,
            tuple(
                note
                if note == ABSENT and not values
                else f"{note} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})"
                for note, seeds in notes.items()
            ),
            tuple(errors),
        )


def shortened(reason: str) -> str:
    """A reason on one short line."""
    line = " ".join(reason.split())
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…"
