"""What there is to say around a table: when, where, with what, under which budget; and what it does not show."""

import os
import platform
from pathlib import Path

from mim_jax.compare.calibration import calibration_key, steps_in
from mim_jax.compare.noise import RULE, judge
from mim_jax.compare.protocol import PRETRAIN, Protocol, flatten
from mim_jax.compare.records import DONE, SPEED, Records, now
from mim_jax.compare.stages import Job, own_length, result_key
from mim_jax.compare.table import ABSENT, Table


def facts(table: Table, pretrain: dict[str, Job], command: str, slots: int) -> dict[str, str]:
    """Name -> value, in order."""
    protocol = table.protocol
    versions = _versions(table.records)
    found = {
        "date": now(),
        "hardware": ", ".join([f"{os.cpu_count()} x {_cpu()}", *versions.pop("devices", [])]),
        "versions": ", ".join(f"{name} {' and '.join(values)}" for name, values in versions.items())
        or "not known yet",
        "command": command,
        "budget": budget(protocol, table.records, pretrain),
        "seeds": ", ".join(map(str, protocol.seeds)),
        "at a time": f"{slots} run{'s' * (slots > 1)}; speeds and times hold for that",
    }
    exempt = [arm for arm in protocol.chosen if own_length(protocol.arms[arm])]
    if exempt:
        found["outside the budget"] = f"{', '.join(exempt)}: the spec says itself how long it runs"
    return found


def budget(protocol: Protocol, records: Records, pretrain: dict[str, Job]) -> str:
    """How long the arms train, in words."""
    if protocol.budget == "images":
        epochs = flatten(protocol.shared)["schedule.epochs"]
        return f"equal images: {epochs:g} epochs of pre-training for every arm"
    steps = []
    for arm, job in pretrain.items():
        record = records.get(calibration_key(arm))
        if record is not None and record.status == DONE and SPEED in record.values:
            count = steps_in(protocol, job, record)
            steps.append(f"{arm} {count} steps ({record.values[SPEED]:.1f} images/s)")
    return (
        f"equal time: {protocol.seconds:g} s of training for every arm, in steps by a calibration of"
        f" {protocol.calibration_steps} steps: {', '.join(steps) or 'not measured yet'}"
    )


def caption(table: Table) -> str:
    """What the numbers are."""
    text = "Mean ± half the range over the seeds; without ± it is one seed."
    if any(note.startswith(ABSENT) for entry in table.entries.values() for note in entry.notes):
        text += f" {ABSENT}: the run measured no such number."
    return text


def state(table: Table) -> str:
    """How far an unfinished comparison is, a sentence; '' once all stages are done."""
    counts = table.counts()
    total, done = sum(counts.values()), counts.get(DONE, 0)
    if done == total:
        return ""
    rest = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()) if word != DONE)
    return f"{done} of {total} stages are done; {rest}. The same command goes on."


def verdicts(table: Table) -> list[str]:
    """Which differences mean nothing, a sentence for every quality that has been measured."""
    found = [
        judge(column, summaries)
        for column in table.columns
        if column.better != "plain" and (summaries := table.summaries(column))
    ]
    return [*found, RULE] if found else ["Nothing has been measured yet."]


def commands(table: Table) -> list[str]:
    """The command of every arm's pre-training, of its first seed that has one."""
    found = []
    for arm in table.protocol.chosen:
        keys = (result_key(arm, seed, PRETRAIN) for seed in table.protocol.seeds)
        records = [record for key in keys if (record := table.records.get(key))]
        found += [record.command for record in records[:1]]
    return found


def _versions(records: Records) -> dict[str, list[str]]:
    """Name -> all that finished stages ran with: more than one, if something changed on the way."""
    found: dict[str, list[str]] = {}
    for record in records.all():
        for name, value in record.versions.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
