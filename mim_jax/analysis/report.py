"""The files of an analysis: CSV tables, PNG figures, report.html, and the verdict on the console."""

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from etils.epath import Path
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mim_jax.analysis.attention_metrics import per_head_divergence
from mim_jax.analysis.figures import (
    UNIT_TITLES,
    AttentionMaps,
    cka_figure,
    heads_figure,
    layers_figure,
    rollout_figure,
)
from mim_jax.analysis.runs import (
    AnalysisOptions,
    AnalyzedRun,
)
from mim_jax.analysis.verdict import KIND_TITLES, QUANTITIES, Finding, RunSummary, findings
from mim_jax.config.check import to_dict
from mim_jax.config.schema import Config
from mim_jax.progress import log
from mim_jax.storage import atomic_write, write_text
from mim_jax.training.monitoring.report import png_uri

HEADS_FILE, LAYERS_FILE, CKA_FILE = "heads.csv", "layers.csv", "cka.csv"


def write_tables(folder: Path, summaries: Sequence[RunSummary], first: int) -> list[Path]:
    """heads.csv with one row per head, layers.csv, and cka.csv where CKA was computed. `first`: number of CKA's first layer.

    Layers count from 1 (in CKA 0 = the embedding), heads from 1. Distances are in the unit in their column's name.
    """
    units = summaries[0].means.blocks[0].units
    written = [
        _write_csv(folder / HEADS_FILE, (row for s in summaries for row in _heads(s, units))),
        _write_csv(folder / LAYERS_FILE, (row for s in summaries for row in _layers(s, units))),
    ]
    if all(s.means.cka is not None for s in summaries):
        written.append(_write_csv(folder / CKA_FILE, (row for s in summaries for row in _pairs(s, first))))
    return written


def _heads(summary: RunSummary, units: str) -> Iterable[dict[str, Any]]:
    for layer, block in enumerate(summary.means.blocks):
        second = per_head_divergence(block.kl, first=False)
        for head in range(len(block.distance)):
            row = {
                "run": summary.name,
                "layer": layer + 1,
                "head": head + 1,
                f"distance_drop_{units}": block.distance[head],
                f"distance_renorm_{units}": block.distance_renorm[head],
                "distance_drop_over_uniform": block.distance[head] / block.uniform,
                "entropy_nats": block.entropy[head],
                "entropy_patch_renorm_nats": block.entropy_patch[head],
                "entropy_over_largest": block.entropy[head] / block.max_entropy,
                "kl_as_first_nats": block.head_kl[head],
                "kl_as_second_nats": second[head],
            }
            if block.jensen_shannon is not None:
                row["jensen_shannon_nats"] = per_head_divergence(block.jensen_shannon)[head]
            yield row


def _layers(summary: RunSummary, units: str) -> Iterable[dict[str, Any]]:
    means, cls = summary.means, summary.cls
    local, far, entropy_range = means.local_share(cls), means.global_share(cls), means.entropy_range
    for layer, block in enumerate(means.blocks):
        row = {
            "run": summary.name,
            "kind": summary.kind,
            "layer": layer + 1,
            "heads": len(block.distance),
            f"distance_mean_{units}": block.distance_by(cls).mean(),
            f"distance_uniform_{units}": block.uniform,
            "local_frac": local[layer],
            "global_frac": far[layer],
            "entropy_mean_nats": block.entropy.mean(),
            "entropy_largest_nats": block.max_entropy,
            "spread_ent_nats": entropy_range[layer],
            "kl_nats": block.layer_kl,
        }
        if block.jensen_shannon is not None:
            row["jensen_shannon_nats"] = per_head_divergence(block.jensen_shannon).mean()
        yield row


def _pairs(summary: RunSummary, first: int) -> Iterable[dict[str, Any]]:
    assert summary.means.cka is not None
    for (a, b), value in np.ndenumerate(summary.means.cka):
        yield {"run": summary.name, "layer_a": first + a, "layer_b": first + b, "cka": value}


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    all_rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(all_rows[0]))
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        for row in all_rows
    )
    write_text(path, text.getvalue())
    return path


def verdict_text(findings: Sequence[Finding]) -> str:
    """The findings for the console: a statement, its verdict, and the numbers of every run."""
    width = max(len(name) for finding in findings for name in finding.numbers)
    lines = []
    for finding in findings:
        reason = f" ({finding.reason})" if finding.reason else ""
        lines.append(f"{finding.claim}  {finding.statement}: {finding.verdict.upper()}{reason}")
        lines.append(f"    {finding.quantity}; {finding.threshold}")
        for name, value in finding.numbers.items():
            beside = f"  ({finding.notes[name]})" if finding.notes[name] else ""
            lines.append(f"      {name:<{width}}  {value}{beside}")
    return "\n".join(lines)


NOT_IN_PAPER = (
    "The body of the paper states neither how many images its plots use nor how they treat CLS, nor which features and which"
    " estimate its CKA uses: the choices here are stated beside each number. Nothing on this page is a number of the paper."
)


def write_page(
    path: Path,
    *,
    title: str,
    summaries: Sequence[RunSummary],
    findings: Sequence[Finding],
    runs: Mapping[str, Mapping[str, str]],
    notes: Sequence[str],
    figures: Sequence[tuple[str, str, Path]],
    tables: Sequence[Path],
    config_text: str,
) -> None:
    """Writes the page.

    Args:
        runs: run -> name -> value, in order.
        notes: what a reader must know of this comparison.
        figures: title, caption and PNG file.
        tables: CSV files, named beside the numbers.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.jinja").render(
        title=title,
        names=[s.name for s in summaries],
        findings=findings,
        quantities=QUANTITIES,
        notes=[*notes, NOT_IN_PAPER],
        figures=[(name, text, png_uri(file.read_bytes())) for name, text, file in figures],
        layers=[(s.name, KIND_TITLES[s.kind], layer_rows(s)) for s in summaries],
        units=UNIT_TITLES[summaries[0].means.blocks[0].units],
        runs=runs,
        tables=[file.name for file in tables],
        config_text=config_text,
    )
    write_text(path, page)


def layer_rows(summary: RunSummary) -> list[tuple[str, ...]]:
    """layer, mean distance, even one, local and global share, entropy, its spread, KL; as text."""
    means, cls = summary.means, summary.cls
    local, far, entropy_range = means.local_share(cls), means.global_share(cls), means.entropy_range
    return [
        (
            str(at + 1),
            f"{block.distance_by(cls).mean():.2f}",
            f"{block.uniform:.2f}",
            f"{local[at]:.2f}",
            f"{far[at]:.2f}",
            f"{block.entropy.mean():.3f}",
            f"{entropy_range[at]:.3f}",
            f"{block.layer_kl:.4f}",
        )
        for at, block in enumerate(means.blocks)
    ]


REPORT = "report.html"


CLS_WORDS = {
    "drop": "CLS as a key is left out.",
    "renorm": "CLS as a key is left out, and the weights of the other keys sum to 1.",
}


FEATURE_WORDS = {
    "flatten": "all patch tokens of an image, as one vector",
    "pool": "the mean of an image's patch tokens",
    "cls": "the CLS token",
    "tokens": "every patch token on its own",
}
"""What the options are called in captions."""


SHALLOW = 9
"""Layers below which "the last three" are more than a third of a network."""


def write_report(
    config: Config,
    options: AnalysisOptions,
    workdir: Path,
    analyzed_runs: Sequence[AnalyzedRun],
    summaries: Sequence[RunSummary],
    maps: Sequence[tuple[str, AttentionMaps]],
) -> None:
    """Writes all files, and prints the verdict."""
    first = 0 if options.embedding else 1
    tables = write_tables(workdir, summaries, first)
    table = findings(summaries)
    notes = reader_notes(analyzed_runs, summaries, options)
    figures = [
        (title, caption, _save_figure(figure, workdir / file))
        for title, caption, file, figure in make_figures(summaries, maps, first, options)
    ]
    write_page(
        workdir / REPORT,
        title=f"Attention of {', '.join(s.name for s in summaries)}",
        summaries=summaries,
        findings=table,
        runs={
            run.name: describe_run(run, summary)
            for run, summary in zip(analyzed_runs, summaries, strict=True)
        },
        notes=notes,
        figures=figures,
        tables=tables,
        config_text=json.dumps(to_dict(config)["job"], indent=2),
    )
    log("\n".join(["", verdict_text(table), "", *notes, ""]))
    log("\n".join(f"{name}: {text}" for name, text in QUANTITIES.items()))
    log(f"\nreport: {workdir / REPORT}")


def make_figures(
    summaries: Sequence[RunSummary],
    maps: Sequence[tuple[str, AttentionMaps]],
    first: int,
    options: AnalysisOptions,
) -> Iterator[tuple[str, str, str, Figure]]:
    """Title, caption, file name and figure of each figure that has data."""
    yield (
        "Attention by layer",
        f"A small dot a head, a large dot the layer's mean; the dashed line is even attention. {CLS_WORDS[options.cls]}",
        "layers.png",
        layers_figure(summaries),
    )
    if all(s.means.cka is not None for s in summaries):
        yield (
            "CKA between layers",
            f"{QUANTITIES['CKA']} Features: {FEATURE_WORDS[options.cka_features]}; estimate: "
            + (
                f"unbiased, over minibatches of at most {options.cka_batch} images."
                if options.cka == "minibatch"
                else "biased, over all images at once."
            ),
            "cka.png",
            cka_figure(summaries, first),
        )
    for number, (name, run_maps) in enumerate(maps):
        if run_maps.layers:
            yield (
                f"What a patch looks at: {name}",
                f"The marked patch of one image{_class_in_brackets(run_maps)}, head by head; bright is the head's largest weight, the number above it.",
                f"attention-{number + 1}.png",
                heads_figure(run_maps, name),
            )
    if any(run_maps.rollout is not None for _, run_maps in maps):
        yield (
            "Attention rollout",
            "What reaches CLS (without CLS: the mean patch) through all layers, heads averaged and residual branches"
            " counted as half (Abnar and Zuidema 2020). By attention alone: what the MLPs do to it is not in it.",
            "rollout.png",
            rollout_figure(maps),
        )


def _class_in_brackets(maps: AttentionMaps) -> str:
    """The class of the first image, in brackets."""
    return f" ({maps.names[0]})" if maps.names and maps.names[0] else ""


def reader_notes(
    analyzed_runs: Sequence[AnalyzedRun], summaries: Sequence[RunSummary], options: AnalysisOptions
) -> list[str]:
    """What limits the comparison of these runs."""
    notes = ["The verdicts speak of these runs only; the thresholds are ours, the paper states none."]
    if len({run.images.fingerprint for run in analyzed_runs}) > 1:
        notes.append(
            "Each run was analysed on its own images, which differ; --config.data.source names the same for all."
        )
    if len({len(s.means.blocks) for s in summaries}) > 1:
        notes.append("The networks differ in depth: layers of one number are not counterparts.")
    if shallow := [f"{s.name} ({len(s.means.blocks)})" for s in summaries if len(s.means.blocks) < SHALLOW]:
        notes.append(
            f"Few layers: {', '.join(shallow)}. The last three are a large part of these networks, and a quarter of the"
            " paper's twelve."
        )
    for s in summaries:
        if s.means.cka is not None and s.means.cka_images < s.means.images:
            notes.append(
                f"{s.name}: CKA used {s.means.cka_images} of the {s.means.images} images (whole minibatches)."
            )
    return notes


def describe_run(run: AnalyzedRun, summary: RunSummary) -> dict[str, str]:
    """Name -> value: directory, training, network, images."""
    method, config = run.method, run.config
    rows, columns = method.net.image_size
    trained = "somebody else's weights" if run.step is None else f"{config.method['name']}, {run.step} steps"
    return {
        "directory": str(run.directory),
        "trained": f"{trained} ({KIND_TITLES[summary.kind]})",
        "network": f"{config.model.variant}, {len(summary.means.blocks)} blocks, {rows} x {columns} px",
        "images": f"{summary.means.images}: {run.images.describe()}; view {config.augment.eval_crop}",
        "pixels": f"mean {config.data.mean}, standard deviation {config.data.std}",
    }


def _save_figure(figure: Figure, path: Path) -> Path:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path
