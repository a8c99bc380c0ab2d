"""The task `analyze`: what finished runs attend to and how their layers resemble each other, side by side."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import numpy.typing as npt
from etils.epath import Path
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mim_jax.analysis.capture import What, make_look
from mim_jax.analysis.cka import FEWEST
from mim_jax.analysis.maps import AttentionMaps, attention_maps, heads_figure, rollout_figure
from mim_jax.analysis.options import AnalysisOptions, check_job
from mim_jax.analysis.page import write_page
from mim_jax.analysis.plots import cka_figure, layers_figure
from mim_jax.analysis.runs import LookedAt, check_comparable, given_kinds, named, read
from mim_jax.analysis.streaming import NetworkMeans, measure
from mim_jax.analysis.tables import verdict_text, write_tables
from mim_jax.analysis.verdict import AXES, KIND_WORDS, Subject, findings
from mim_jax.config.check import ConfigError, to_dict
from mim_jax.config.resolve import resolve_mesh
from mim_jax.config.schema import Config
from mim_jax.data import evaluation_batches, over_classes, place
from mim_jax.methods.method import Batch
from mim_jax.models.vit import Params
from mim_jax.progress import Progress
from mim_jax.storage import atomic_write
from mim_jax.training.run_directory import RunDirectory
from mim_jax.training.sharding import batch_sharding, make_mesh, replicated
from mim_jax.training.watching.first_batch import label_text
from mim_jax.training.watching.log import say

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
MOST_TOKEN_ROWS = 4096
"""Rows of a Gram matrix: with features=tokens every token is one, and the matrices grow with their square."""


def run(config: Config, workdir: str | os.PathLike[str], overwrite: bool = False) -> int:
    """Looks at every run, one after another; report.html, PNG and CSV files in the directory. The exit code.

    Args:
        overwrite: whether the analysis that lies there is replaced: moved aside, and removed at the end.
    Raises:
        ConfigError, CheckpointError, DataError, StorageError: one sentence.
    """
    with RunDirectory(workdir, "analyze", overwrite=overwrite) as run_directory:
        return _run(config, run_directory)


def _run(config: Config, run_directory: RunDirectory) -> int:
    options = check_job(config)
    directories = named(config.runs)
    kinds = given_kinds(options, len(directories))
    check_comparable(directories, options.step)
    mesh = make_mesh(resolve_mesh(config.mesh, jax.device_count()))
    run_directory.acquire(config)
    seen: list[LookedAt] = []
    subjects: list[Subject] = []
    maps: list[tuple[str, AttentionMaps]] = []
    for (name, directory), kind in zip(directories.items(), kinds, strict=True):
        started = time.perf_counter()
        own, params = read(name, directory, kind, config, options, replicated(mesh))
        found = look_at(own, params, config, options, mesh)
        seen.append(own)
        subjects.append(Subject(name, own.kind, found, options.cls))
        if options.pictures and jax.process_count() == 1:  # drawing needs whole arrays on one host
            maps.append((name, attention_maps(own.method, params, *_few(own, options, config))))
        say(f"{name}: {found.images} images in {time.perf_counter() - started:.1f} s")
    if jax.process_index() == 0:
        _write(config, options, run_directory.path, seen, subjects, maps)
        run_directory.discard_replaced()
    return 0


def look_at(
    own: LookedAt, params: Params, config: Config, options: AnalysisOptions, mesh: jax.sharding.Mesh
) -> NetworkMeans:
    """One run's numbers."""
    group = min(options.cka_batch, len(own.images)) if options.cka == "minibatch" else 0
    features = None if options.cka == "none" else options.cka_features
    if features and len(own.images) < FEWEST:
        raise ConfigError(
            f"{own.images.name} has {len(own.images)} images, but CKA needs {FEWEST}: pass --config.job.cka=none"
        )
    if features == "cls" and not own.method.net.prefix:
        raise ConfigError(
            f"config.job.cka_features=cls, but {own.directory} has no CLS token: use flatten or pool"
        )
    tokens = max(len(where.coordinates) * where.windows for where in own.method.net.geometry)
    if features == "tokens" and group * tokens > MOST_TOKEN_ROWS:
        raise ConfigError(
            f"config.job.cka_batch={group} images of {tokens} tokens are too many rows for CKA: take at most"
            f" {MOST_TOKEN_ROWS // tokens} of them, or other features"
        )
    what = What(options.units, options.jensen_shannon, features, group, options.embedding)
    step = math.lcm(max(group, 1), mesh.size)
    batch = step * -(-options.batch // step)
    return measure(
        make_look(own.method, what, mesh),
        params,
        _batches(own, batch, config, mesh),
        geometry=own.method.net.geometry,
        units=options.units,
    )


def _batches(own: LookedAt, size: int, config: Config, mesh: jax.sharding.Mesh) -> Iterator[Batch]:
    made = evaluation_batches(
        own.images,
        own.method.feature_view,
        batch_size=size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
    )
    with Progress(f"attention of {own.name}", len(own.images)) as progress:
        for batch in made:
            yield place({name: batch[name] for name in ("image", "valid")}, batch_sharding(mesh))
            progress.update(min(size, len(own.images) - progress.done))


def _few(
    own: LookedAt, options: AnalysisOptions, config: Config
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Some of the images, of as many classes as may be, and their classes, for pictures."""
    few = over_classes(own.images, options.pictures)
    spec, threads = own.method.feature_view, config.data.threads
    batch = next(evaluation_batches(few, spec, batch_size=len(few), threads=threads))
    names = tuple(label_text(int(label), few.class_names) for label in batch["label"])
    return np.asarray(batch["image"]), names


def _write(
    config: Config,
    options: AnalysisOptions,
    workdir: Path,
    seen: Sequence[LookedAt],
    subjects: Sequence[Subject],
    maps: Sequence[tuple[str, AttentionMaps]],
) -> None:
    """All files, and the verdict on the console."""
    first = 0 if options.embedding else 1
    tables = write_tables(workdir, subjects, first)
    table = findings(subjects)
    notes = remarks(seen, subjects, options)
    figures = [
        (title, caption, _save(figure, workdir / file))
        for title, caption, file, figure in drawings(subjects, maps, first, options)
    ]
    write_page(
        workdir / REPORT,
        title=f"Attention of {', '.join(s.name for s in subjects)}",
        subjects=subjects,
        findings=table,
        facts={own.name: facts(own, subject) for own, subject in zip(seen, subjects, strict=True)},
        notes=notes,
        figures=figures,
        tables=tables,
        config_text=json.dumps(to_dict(config)["job"], indent=2),
    )
    say("\n".join(["", verdict_text(table), "", *notes, ""]))
    say("\n".join(f"{name}: {text}" for name, text in AXES.items()))
    say(f"\nreport: {workdir / REPORT}")


def drawings(
    subjects: Sequence[Subject],
    maps: Sequence[tuple[str, AttentionMaps]],
    first: int,
    options: AnalysisOptions,
) -> Iterator[tuple[str, str, str, Figure]]:
    """Title, caption, file and figure of each picture there is something for."""
    yield (
        "Attention by layer",
        f"A small dot a head, a large dot the layer's mean; the dashed line is even attention. {CLS_WORDS[options.cls]}",
        "layers.png",
        layers_figure(subjects),
    )
    if all(s.found.cka is not None for s in subjects):
        yield (
            "CKA between layers",
            f"{AXES['CKA']} Features: {FEATURE_WORDS[options.cka_features]}; estimate: "
            + (
                f"unbiased, over minibatches of at most {options.cka_batch} images."
                if options.cka == "minibatch"
                else "biased, over all images at once."
            ),
            "cka.png",
            cka_figure(subjects, first),
        )
    for number, (name, own) in enumerate(maps):
        if own.layers:
            yield (
                f"What a patch looks at: {name}",
                f"The marked patch of one image{_named(own)}, head by head; bright is the head's largest weight, the number above it.",
                f"attention-{number + 1}.png",
                heads_figure(own, name),
            )
    if any(own.rollout is not None for _, own in maps):
        yield (
            "Attention rollout",
            "What reaches CLS (without CLS: the mean patch) through all layers, heads averaged and residual branches"
            " counted as half (Abnar and Zuidema 2020). By attention alone: what the MLPs do to it is not in it.",
            "rollout.png",
            rollout_figure(maps),
        )


def _named(maps: AttentionMaps) -> str:
    """The class of the first image, in brackets."""
    return f" ({maps.names[0]})" if maps.names and maps.names[0] else ""


def remarks(seen: Sequence[LookedAt], subjects: Sequence[Subject], options: AnalysisOptions) -> list[str]:
    """What a reader must know of this comparison."""
    notes = ["The verdicts speak of these runs only; the thresholds are ours, the paper states none."]
    if len({own.images.fingerprint for own in seen}) > 1:
        notes.append(
            "The runs were looked at on different images, their own; --config.data.source names the same for all."
        )
    if len({len(s.found.blocks) for s in subjects}) > 1:
        notes.append("The networks differ in depth: layers of one number are not counterparts.")
    if shallow := [f"{s.name} ({len(s.found.blocks)})" for s in subjects if len(s.found.blocks) < SHALLOW]:
        notes.append(
            f"Few layers: {', '.join(shallow)}. The last three are a large part of these networks, and a quarter of the"
            " paper's twelve."
        )
    for s in subjects:
        if s.found.cka is not None and s.found.cka_images < s.found.images:
            notes.append(
                f"{s.name}: CKA used {s.found.cka_images} of the {s.found.images} images (whole minibatches)."
            )
    return notes


def facts(own: LookedAt, subject: Subject) -> dict[str, str]:
    """What a run is, for the report."""
    method, config = own.method, own.config
    rows, columns = method.net.image_size
    trained = "somebody else's weights" if own.step is None else f"{config.method['name']}, {own.step} steps"
    return {
        "directory": str(own.directory),
        "trained": f"{trained} ({KIND_WORDS[subject.kind]})",
        "network": f"{config.model.variant}, {len(subject.found.blocks)} blocks, {rows} x {columns} px",
        "images": f"{subject.found.images}: {own.images.describe()}; view {config.augment.eval_crop}",
        "pixels": f"mean {config.data.mean}, standard deviation {config.data.std}",
    }


def _save(figure: Figure, path: Path) -> Path:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path


__all__ = ["check_job", "run"]
