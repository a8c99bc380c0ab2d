"""DIR/table.md, table.csv and table.html: the same table for people, for programs and for a browser."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from mim_jax.compare.facts import caption, commands, verdicts
from mim_jax.compare.records import FAILED
from mim_jax.compare.table import Table
from mim_jax.training.watching.report import data_uri

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1200px; margin: 2.5rem auto; padding: 0 1.2rem; }
  h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
  table { border-collapse: collapse } tr { border-bottom: 1px solid #eee } img { max-width: 100% }
  td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; overflow-wrap: anywhere }
  td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } pre { font-size: 12px; background: #f6f6f6; padding: 1rem; overflow: auto }
</style>
<h1>Comparison</h1>
<table><tr><th>arm</th>{% for column in columns %}<th class="n">{{ column.title }}</th>{% endfor %}</tr>
{% for arm, texts in rows.items() %}<tr><td>{{ arm }}</td>{% for text in texts %}<td class="n">{{ text }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p>{{ caption }}</p>
{% if chart %}<img src="{{ chart }}" alt="The qualities as bars">{% endif %}
<h2>Which differences are inside the noise</h2>
{% for verdict in verdicts %}<p>{{ verdict }}</p>
{% endfor %}<h2>How it was measured</h2>
<table>{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
<details><summary>Commands of the first seed</summary><pre>{{ commands|join("\\n") }}</pre></details>
</html>
"""


def write_pages(folder: Path, table: Table, facts: Mapping[str, str]) -> None:
    """Writes all three, each whole or not at all."""
    for name, text in (
        ("table.md", markdown(table, facts)),
        ("table.csv", comma_separated(table)),
        ("table.html", html(table, facts)),
    ):
        partial = folder / f"{name}.partial"
        partial.write_text(text)
        os.replace(partial, folder / name)


def markdown(table: Table, facts: Mapping[str, str]) -> str:
    """Facts, the table with a row an arm, and which differences mean nothing."""
    lines = ["# Comparison", "", *(f"- {name}: {_one_line(value)}" for name, value in facts.items()), ""]
    titles = ["arm", *(column.title for column in table.columns)]
    lines += [_row(titles), "|---|" + "---:|" * len(table.columns)]
    lines += [_row([arm, *texts]) for arm, texts in _rows(table).items()]
    lines += ["", caption(table), "", "## Which differences are inside the noise", ""]
    lines += [f"{verdict}\n" for verdict in verdicts(table)]
    lines += ["## Commands of the first seed", "", *(f"    {command}" for command in commands(table))]
    return "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """A row a cell: the numbers of its columns in full, and what became of every stage."""
    stages = table.protocol.stages
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", *(column.title for column in table.columns), *stages, "failure"])
    for seed in table.protocol.seeds:
        for arm in table.protocol.chosen:
            found = [table.status(arm, seed, stage) for stage in stages]
            values = [table.entries[arm, column].values.get(seed, "") for column in table.columns]
            failure = "; ".join(record.reason for status, record in found if record and status == FAILED)
            writer.writerow([arm, seed, *values, *(status for status, _ in found), failure])
    return out.getvalue()


def html(table: Table, facts: Mapping[str, str]) -> str:
    """One page that opens offline."""
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    return page.render(
        columns=table.columns,
        rows=_rows(table),
        caption=caption(table),
        chart=chart(table),
        verdicts=verdicts(table),
        facts=facts,
        commands=commands(table),
    )


def chart(table: Table) -> str:
    """A panel for every quality as an image inside the page; '' while there is nothing to show."""
    columns = [column for column in table.columns if column.better != "plain" and table.summaries(column)]
    if not columns:
        return ""
    arms = table.protocol.chosen
    figure = Figure(figsize=(4.2 * len(columns), 0.8 + 0.32 * len(arms)))
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)
    for axis, column in zip(axes.flat, columns, strict=True):
        summaries = table.summaries(column)
        for place, arm in enumerate(arms):
            if arm in summaries:
                summary = summaries[arm]
                error = summary.half_range if summary.seeds > 1 else None
                axis.barh(place, summary.mean, xerr=error, capsize=3, color="#8fb3d9", height=0.7)
                values = list(table.entries[arm, column].values.values())
                axis.plot(values, np.full(len(values), place), "o", color="#1c1c1c", markersize=2.5)
        axis.set_title(f"{column.title} ({column.better} is better)", fontsize=9)
        axis.grid(axis="x", alpha=0.25)
        axis.tick_params(labelsize=8)
    axes[0, 0].set_yticks(range(len(arms)), arms)
    axes[0, 0].invert_yaxis()
    figure.tight_layout()
    return data_uri(figure)


def _rows(table: Table) -> dict[str, list[str]]:
    return {arm: [table.text(arm, column) for column in table.columns] for arm in table.protocol.chosen}


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(_one_line(text).replace("|", "\\|") for text in texts) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())
