"""DIR/table.md, table.csv and table.html: the same table for people, for programs and for a browser."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

from mim_jax.compare.facts import caption, commands, state, verdicts
from mim_jax.compare.protocol import Column
from mim_jax.compare.records import FAILED
from mim_jax.compare.table import Table
from mim_jax.storage import write_text
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
  td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top }
  .charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; align-items: start } .charts img { width: 100%; max-width: 520px }
  .wide { overflow-x: auto; max-width: 100% } .results th { vertical-align: bottom } .results th.n { min-width: 4.5rem } .results td { white-space: nowrap }
  .results td small { display: block; color: #666 } .results td.waiting { text-align: left; color: #777 }
  .facts td { overflow-wrap: anywhere } .facts th { white-space: nowrap }
  td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } pre { font-size: 12px; background: #f6f6f6; padding: 1rem; overflow: auto }
  @media (max-width: 600px) { body { margin: 1.2rem auto } .facts th { white-space: normal } }
</style>
<h1>Comparison</h1>
{% if state %}<p><b>{{ state }}</b></p>{% endif %}
{% for title, columns, rows in tables %}{% if title %}<h2>{{ title }}</h2>{% endif %}
<div class="wide"><table class="results"><tr><th>arm</th>{% for column in columns %}<th class="n">{{ column.title }}</th>{% endfor %}</tr>
{% for arm, cells in rows.items() %}<tr><td>{{ arm }}</td>{% if cells is none %}<td class="waiting" colspan="{{ columns|length }}">waiting</td>{% else %}{% for number, notes in cells %}<td class="n">{{ number }}{% for note in notes %}<small>{{ note }}</small>{% endfor %}</td>{% endfor %}{% endif %}</tr>
{% endfor %}</table></div>
{% endfor %}<p>{{ caption }}</p>
{% if failures %}<h2>Failures</h2>
<ul>{% for failure in failures %}<li>{{ failure }}</li>{% endfor %}</ul>{% endif %}
<div class="charts">{% for title, image in charts %}<img src="{{ image }}" alt="{{ title }}">{% endfor %}</div>
<h2>Which differences are inside the noise</h2>
{% for verdict in verdicts %}<p>{{ verdict }}</p>
{% endfor %}<h2>How it was measured</h2>
<table class="facts">{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
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
        write_text(folder / name, text)


def markdown(table: Table, facts: Mapping[str, str]) -> str:
    """Facts, the table with a row an arm, and which differences mean nothing."""
    lines = ["# Comparison", "", *(f"- {name}: {_one_line(value)}" for name, value in facts.items()), ""]
    lines += [state(table), ""] if state(table) else []
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
    qualities = [column for column in table.columns if column.better != "plain"]
    costs = [column for column in table.columns if column.better == "plain"]
    return page.render(
        tables=[
            (title, columns, _cells(table, columns))
            for title, columns in (("", qualities), ("Cost" if qualities else "", costs))
            if columns
        ],
        failures=table.failures(),
        state=state(table),
        caption=caption(table),
        charts=charts(table),
        verdicts=verdicts(table),
        facts=facts,
        commands=commands(table),
    )


def _cells(table: Table, columns: Sequence[Column]) -> dict[str, list[tuple[str, tuple[str, ...]]] | None]:
    """Arm -> number and notes of each column; None = nothing of it has been run."""
    return {
        arm: None
        if table.untouched(arm)
        else [(table.number(arm, column), table.entries[arm, column].brief) for column in columns]
        for arm in table.protocol.chosen
    }


def charts(table: Table) -> list[tuple[str, str]]:
    """Title and image (inside the page) of a panel for every quality that has been measured."""
    found = []
    for column in table.columns:
        summaries = table.summaries(column)
        if column.better == "plain" or not summaries:
            continue
        figure = Figure(figsize=(4.6, 0.8 + 0.32 * len(summaries)), layout="constrained")
        axis = figure.subplots()
        for place, (arm, summary) in enumerate(summaries.items()):
            error = summary.half_range if summary.seeds > 1 else None
            axis.barh(place, summary.mean, xerr=error, capsize=3, color="#8fb3d9", height=0.7)
            values = list(table.entries[arm, column].values.values())
            axis.plot(values, np.full(len(values), place), "o", color="#1c1c1c", markersize=2.5)
        axis.set_title(f"{column.title} ({column.better} is better)", fontsize=10, parse_math=False)
        axis.grid(axis="x", alpha=0.25)
        axis.tick_params(labelsize=9)
        axis.set_yticks(range(len(summaries)), list(summaries), parse_math=False)
        axis.invert_yaxis()
        found.append((column.title, data_uri(figure)))
    return found


def _rows(table: Table) -> dict[str, list[str]]:
    return {arm: [table.text(arm, column) for column in table.columns] for arm in table.protocol.chosen}


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(_one_line(text).replace("|", "\\|") for text in texts) + " |"


def _one_line(text: str) -> str:
    return " ".join(text.split())
