"""The numbers as CSV files, one row a head, a layer or a pair of layers; and the verdict as text."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils.epath import Path

from mim_jax.analysis.summaries import head_values
from mim_jax.analysis.verdict import Finding, Subject
from mim_jax.storage import write_text

HEADS, LAYERS, CKA = "heads.csv", "layers.csv", "cka.csv"


def write_tables(folder: Path, subjects: Sequence[Subject], first: int) -> list[Path]:
    """heads.csv, layers.csv, and cka.csv where there is one. `first`: number of CKA's first layer.

    Layers count from 1 (in CKA 0 = the embedding), heads from 1. Distances are in the unit in their column's name.
    """
    units = subjects[0].found.blocks[0].units
    written = [
        _write(folder / HEADS, (row for s in subjects for row in _heads(s, units))),
        _write(folder / LAYERS, (row for s in subjects for row in _layers(s, units))),
    ]
    if all(s.found.cka is not None for s in subjects):
        written.append(_write(folder / CKA, (row for s in subjects for row in _pairs(s, first))))
    return written


def _heads(subject: Subject, units: str) -> Iterable[dict[str, Any]]:
    for layer, block in enumerate(subject.found.blocks):
        second = head_values(block.kl, first=False)
        for head in range(len(block.distance)):
            row = {
                "run": subject.name,
                "layer": layer + 1,
                "head": head + 1,
                f"distance_drop_{units}": block.distance[head],
                f"distance_renorm_{units}": block.distance_renorm[head],
                "distance_drop_over_uniform": block.distance[head] / block.uniform,
                "entropy_nats": block.entropy[head],
                "entropy_patch_renorm_nats": block.entropy_patch[head],
                "entropy_over_largest": block.entropy[head] / block.largest_entropy,
                "kl_as_first_nats": block.head_kl[head],
                "kl_as_second_nats": second[head],
            }
            if block.jensen_shannon is not None:
                row["jensen_shannon_nats"] = head_values(block.jensen_shannon)[head]
            yield row


def _layers(subject: Subject, units: str) -> Iterable[dict[str, Any]]:
    found, cls = subject.found, subject.cls
    local, far, spread = found.local(cls), found.everywhere(cls), found.spread
    for layer, block in enumerate(found.blocks):
        row = {
            "run": subject.name,
            "kind": subject.kind,
            "layer": layer + 1,
            "heads": len(block.distance),
            f"distance_mean_{units}": block.distance_by(cls).mean(),
            f"distance_uniform_{units}": block.uniform,
            "local_frac": local[layer],
            "global_frac": far[layer],
            "entropy_mean_nats": block.entropy.mean(),
            "entropy_largest_nats": block.largest_entropy,
            "spread_ent_nats": spread[layer],
            "kl_nats": block.layer_kl,
        }
        if block.jensen_shannon is not None:
            row["jensen_shannon_nats"] = head_values(block.jensen_shannon).mean()
        yield row


def _pairs(subject: Subject, first: int) -> Iterable[dict[str, Any]]:
    assert subject.found.cka is not None
    for (a, b), value in np.ndenumerate(subject.found.cka):
        yield {"run": subject.name, "layer_a": first + a, "layer_b": first + b, "cka": value}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    listed = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(listed[0]))
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        for row in listed
    )
    write_text(path, text.getvalue())
    return path


def verdict_text(findings: Sequence[Finding]) -> str:
    """The findings for the console: a statement, its verdict, and the numbers of every run."""
    width = max(len(name) for finding in findings for name in finding.numbers)
    lines = []
    for finding in findings:
        why = f" ({finding.why})" if finding.why else ""
        lines.append(f"{finding.claim}  {finding.statement}: {finding.word.upper()}{why}")
        lines.append(f"    {finding.quantity}; {finding.threshold}")
        for name, value in finding.numbers.items():
            beside = f"  ({finding.beside[name]})" if finding.beside[name] else ""
            lines.append(f"      {name:<{width}}  {value}{beside}")
    return "\n".join(lines)
