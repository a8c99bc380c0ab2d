"""report.html of an analysis: one file that opens offline, pictures inside."""

import pathlib
from collections.abc import Mapping, Sequence

import jinja2
from etils.epath import Path

from mim_jax.analysis.plots import UNITS
from mim_jax.analysis.verdict import AXES, KIND_WORDS, Finding, Subject
from mim_jax.storage import write_text
from mim_jax.training.watching.report import png_uri

UNKNOWN = (
    "The body of the paper states neither how many images its plots use nor how they treat CLS, nor which features and which"
    " estimate its CKA uses: the choices here are stated beside each number. Nothing on this page is a number of the paper."
)


def write_page(
    path: Path,
    *,
    title: str,
    subjects: Sequence[Subject],
    findings: Sequence[Finding],
    facts: Mapping[str, Mapping[str, str]],
    notes: Sequence[str],
    figures: Sequence[tuple[str, str, Path]],
    tables: Sequence[Path],
    config_text: str,
) -> None:
    """Writes the page.

    Args:
        facts: run -> name -> value, in order.
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
        names=[s.name for s in subjects],
        findings=findings,
        axes=AXES,
        notes=[*notes, UNKNOWN],
        figures=[(name, text, png_uri(file.read_bytes())) for name, text, file in figures],
        layers=[(s.name, KIND_WORDS[s.kind], layer_rows(s)) for s in subjects],
        units=UNITS[subjects[0].found.blocks[0].units],
        facts=facts,
        tables=[file.name for file in tables],
        config_text=config_text,
    )
    write_text(path, page)


def layer_rows(subject: Subject) -> list[tuple[str, ...]]:
    """layer, mean distance, even one, local and global share, entropy, its spread, KL; as text."""
    found, cls = subject.found, subject.cls
    local, far, spread = found.local(cls), found.everywhere(cls), found.spread
    return [
        (
            str(at + 1),
            f"{block.distance_by(cls).mean():.2f}",
            f"{block.uniform:.2f}",
            f"{local[at]:.2f}",
            f"{far[at]:.2f}",
            f"{block.entropy.mean():.3f}",
            f"{spread[at]:.3f}",
            f"{block.layer_kl:.4f}",
        )
        for at, block in enumerate(found.blocks)
    ]
