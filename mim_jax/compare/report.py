"""DIR/table.md, table.csv and table.html, made from the results alone: one row per arm, for people, programs and a browser."""

import csv
import io
import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from mim_jax.compare.config import PRETRAIN, Column, flatten
from mim_jax.compare.results import DONE, FAILED, SPEED, timestamp
from mim_jax.compare.stages import RunSpec, calibration_key, sets_length, steps_in_budget
from mim_jax.compare.statistics import CONFIDENCE, Interval, difference_over_images, difference_over_seeds
from mim_jax.compare.table import NO_VALUE, Table, num_decimals
from mim_jax.storage import write_text
from mim_jax.training.monitoring.report import figure_uri

DIFFERENCE_TITLES = ("quality", "arm", "difference", "interval over seeds", "over test images", "distinct")
DIFFERENCES_CAPTION = (
    f"Each arm's mean minus the best one, with {CONFIDENCE:.0%} intervals: over seeds Welch's t interval, which takes two seeds of"
    " both arms; over test images a paired bootstrap of the accuracies per image, averaged over the seeds, which holds the"
    " training runs fixed. Two arms are distinct where no interval contains 0. The intervals are not corrected for the"
    " number of arms."
)


def write_report(
    folder: Path,
    table: Table,
    runs: Mapping[str, RunSpec],
    command: str,
    num_jobs: int,
) -> None:
    """Writes all three files. runs: arm -> its pre-training. command, num_jobs: of this comparison."""
    provenance = collect_provenance(table, runs, command, num_jobs)
    for name, text in (
        ("table.md", markdown(table, provenance)),
        ("table.csv", comma_separated(table)),
        ("table.html", html(table, provenance)),
    ):
        write_text(folder / name, text)


def collect_provenance(
    table: Table, runs: Mapping[str, RunSpec], command: str, num_jobs: int
) -> dict[str, str]:
    """When, where, with what and under which budget the numbers were measured: name -> value, in order."""
    comparison = table.comparison
    versions: dict[str, list[str]] = {}  # several where something changed between stages
    for result in table.results.all():
        for name, value in result.versions.items():
            if value not in versions.setdefault(name, []):
                versions[name].append(value)
    provenance = {
        "date": timestamp(),
        "hardware": ", ".join([f"{os.cpu_count()} x {_cpu_name()}", *versions.pop("devices", [])]),
        "versions": ", ".join(f"{name} {' and '.join(values)}" for name, values in versions.items())
        or "not known yet",
        "command": command,
        "budget": _budget_text(table, runs),
        "seeds": ", ".join(map(str, comparison.seeds)),
        "at a time": f"{num_jobs} run{'s' * (num_jobs > 1)}; speeds and times hold for that",
    }
    if exempt := [arm for arm in comparison.arm_names if sets_length(comparison.arms[arm])]:
        provenance["outside the budget"] = f"{', '.join(exempt)}: the spec sets the length of its run"
    return provenance


def _budget_text(table: Table, runs: Mapping[str, RunSpec]) -> str:
    comparison = table.comparison
    if comparison.budget == "images":
        epochs = flatten(comparison.shared)["schedule.epochs"]
        return f"equal images: {epochs:g} epochs of pre-training for every arm"
    steps = []
    for arm, run in runs.items():
        result = table.results.get(calibration_key(arm))
        if result is not None and result.status == DONE and SPEED in result.values:
            speed = result.values[SPEED]
            steps.append(f"{arm} {steps_in_budget(comparison, run, speed)} steps ({speed:.1f} images/s)")
    return (
        f"equal time: {comparison.seconds:g} s of training for every arm, in steps by a calibration of"
        f" {comparison.calibration_steps} steps: {', '.join(steps) or 'not measured yet'}"
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def caption(table: Table) -> str:
    """What the numbers are."""
    text = f"Qualities: mean ± half-width of the {CONFIDENCE:.0%} t interval over seeds; without ± there is one seed."
    text += " Costs: mean over seeds."
    if any(note.startswith(NO_VALUE) for entry in table.entries.values() for note in entry.notes):
        text += f" {NO_VALUE}: the run logged no such number."
    return text


def progress_text(table: Table) -> str:
    """How many stages of an unfinished comparison are done; '' once all are."""
    counts = table.status_counts()
    total, done = sum(counts.values()), counts.get(DONE, 0)
    if done == total:
        return ""
    rest = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()) if status != DONE)
    return f"{done} of {total} stages are done; {rest}. The same command resumes."


def difference_rows(table: Table) -> list[tuple[str, ...]]:
    """Texts for `DIFFERENCE_TITLES`: every quality and every arm but the one with the best mean."""
    rows = []
    for column in table.qualities:
        means = table.seed_means(column)
        if len(means) < 2:
            continue
        sign = 1 if column.better == "higher" else -1
        best = max(means, key=lambda arm: sign * means[arm].mean)
        best_entry = table.entries[best, column]
        for arm, (mean, _) in means.items():
            if arm == best:
                continue
            entry = table.entries[arm, column]
            over_seeds = difference_over_seeds([*entry.values.values()], [*best_entry.values.values()])
            over_images = difference_over_images(entry.correct, best_entry.correct)
            if over_images is not None:
                over_images = Interval(*(column.scale * bound for bound in over_images))
            digits = num_decimals([value.mean for value in means.values()])
            known = [interval for interval in (over_seeds, over_images) if interval is not None]
            distinct = "yes" if not any(interval.contains_zero for interval in known) else "no"
            rows.append(
                (
                    column.title,
                    f"{arm} − {best}",
                    f"{mean - means[best].mean:+.{digits}f}",
                    *(
                        "–" if i is None else f"{i.low:+.{digits}f} to {i.high:+.{digits}f}"
                        for i in (over_seeds, over_images)
                    ),
                    "–" if over_seeds is None else distinct,
                )
            )
    return rows


def markdown(table: Table, provenance: Mapping[str, str]) -> str:
    """Provenance, the table, differences between arms, commands."""
    lines = ["# Comparison", "", *(f"- {name}: {_one_line(value)}" for name, value in provenance.items()), ""]
    lines += [progress, ""] if (progress := progress_text(table)) else []
    titles = ["arm", *(column.title for column in table.columns)]
    lines += [_markdown_row(titles), "|---|" + "---:|" * len(table.columns)]
    for arm in table.comparison.arm_names:
        lines.append(_markdown_row([arm, *(table.text(arm, column) for column in table.columns)]))
    lines += ["", caption(table), "", "## Differences from the best mean", ""]
    if rows := difference_rows(table):
        lines += [
            _markdown_row(DIFFERENCE_TITLES),
            "|---|---|---:|---:|---:|---|",
            *map(_markdown_row, rows),
            "",
        ]
    lines += [DIFFERENCES_CAPTION, "", "## Commands of the first seed", ""]
    lines += [f"    {command}" for command in _first_commands(table)]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """One row per arm and seed: all digits of its values, and the status of each stage."""
    stages = table.comparison.stages
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", *(column.title for column in table.columns), *stages, "failure"])
    for seed, arm in itertools.product(table.comparison.seeds, table.comparison.arm_names):
        statuses = [table.status(arm, seed, stage) for stage in stages]
        values = [table.entries[arm, column].values.get(seed, "") for column in table.columns]
        failure = "; ".join(result.reason for status, result in statuses if result and status == FAILED)
        writer.writerow([arm, seed, *values, *(status for status, _ in statuses), failure])
    return out.getvalue()


def html(table: Table, provenance: Mapping[str, str]) -> str:
    """One page that opens offline."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    costs = [column for column in table.columns if column.better == "plain"]
    return environment.get_template("report.html.jinja").render(
        tables=[
            (title, columns, _html_rows(table, columns))
            for title, columns in (("", table.qualities), ("Cost" if table.qualities else "", costs))
            if columns
        ],
        failures=table.failures(),
        progress=progress_text(table),
        caption=caption(table),
        charts=[
            (column.title, bar_chart(table, column)) for column in table.qualities if table.seed_means(column)
        ],
        difference_titles=DIFFERENCE_TITLES,
        differences=difference_rows(table),
        differences_caption=DIFFERENCES_CAPTION,
        provenance=provenance,
        commands=_first_commands(table),
    )


def _html_rows(
    table: Table, columns: Sequence[Column]
) -> dict[str, list[tuple[str, tuple[str, ...]]] | None]:
    """Arm -> number and notes of each column; None where nothing of the arm has run."""
    return {
        arm: None
        if table.not_started(arm)
        else [(table.number(arm, column), table.entries[arm, column].short_notes) for column in columns]
        for arm in table.comparison.arm_names
    }


def bar_chart(table: Table, column: Column) -> str:
    """A PNG as a data URI: a bar per arm with its interval, a dot per seed."""
    means = table.seed_means(column)
    figure = Figure(figsize=(4.6, 0.8 + 0.32 * len(means)), layout="constrained")
    axis = figure.subplots()
    for y, (arm, (mean, half_width)) in enumerate(means.items()):
        axis.barh(y, mean, xerr=half_width, capsize=3, color="#8fb3d9", height=0.7)
        values = list(table.entries[arm, column].values.values())
        axis.plot(values, np.full(len(values), y), "o", color="#1c1c1c", markersize=2.5)
    axis.set_title(f"{column.title} ({column.better} is better)", fontsize=10, parse_math=False)
    axis.grid(axis="x", alpha=0.25)
    axis.tick_params(labelsize=9)
    axis.set_yticks(range(len(means)), list(means), parse_math=False)
    axis.invert_yaxis()
    return figure_uri(figure)


def _first_commands(table: Table) -> list[str]:
    """The command of every arm's pre-training, of its first seed that has a result."""
    commands: dict[str, str] = {}
    for arm, seed in itertools.product(table.comparison.arm_names, table.comparison.seeds):
        if result := table.status(arm, seed, PRETRAIN)[1]:
            commands.setdefault(arm, result.command)
    return list(commands.values())


def _markdown_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(_one_line(text).replace("|", "\\|") for text in texts) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())
