"""The task `analyze`: what finished runs attend to and how their layers resemble each other, side by side."""

import math
import os
import time
from collections.abc import Iterator

import jax
import numpy as np
import numpy.typing as npt

from mim_jax.analysis.cka import MIN_ROWS
from mim_jax.analysis.figures import AttentionMaps, attention_maps
from mim_jax.analysis.measure import MeasureOptions, NetworkMeans, make_measure_step, measure
from mim_jax.analysis.report import write_report
from mim_jax.analysis.runs import (
    AnalysisOptions,
    AnalyzedRun,
    check_comparable,
    check_job,
    load_run,
    parse_kinds,
    short_names,
)
from mim_jax.analysis.verdict import RunSummary
from mim_jax.config.check import ConfigError
from mim_jax.config.resolve import resolve_mesh
from mim_jax.config.schema import Config
from mim_jax.data import evaluation_batches, over_classes, place
from mim_jax.methods.method import Batch
from mim_jax.models.vit import Params
from mim_jax.progress import Progress, log
from mim_jax.training.monitoring.report import label_text
from mim_jax.training.run_directory import RunDirectory
from mim_jax.training.sharding import batch_sharding, make_mesh, replicated

MAX_TOKEN_ROWS = 4096
"""Rows of a Gram matrix: with features=tokens every token is one, and the matrices grow with their square."""


def run(config: Config, workdir: str | os.PathLike[str], overwrite: bool = False) -> int:
    """Analyses one run after another; writes report.html, PNG and CSV files into the directory. The exit code.

    Args:
        overwrite: replaces an existing analysis: it is moved aside, and removed at the end.
    Raises:
        ConfigError, CheckpointError, DataError, StorageError: one sentence.
    """
    with RunDirectory(workdir, "analyze", overwrite=overwrite) as run_directory:
        return _run(config, run_directory)


def _run(config: Config, run_directory: RunDirectory) -> int:
    options = check_job(config)
    directories = short_names(config.runs)
    kinds = parse_kinds(options, len(directories))
    check_comparable(directories, options.step)
    mesh = make_mesh(resolve_mesh(config.mesh, jax.device_count()))
    run_directory.acquire(config)
    analyzed_runs: list[AnalyzedRun] = []
    summaries: list[RunSummary] = []
    maps: list[tuple[str, AttentionMaps]] = []
    for (name, directory), kind in zip(directories.items(), kinds, strict=True):
        started = time.perf_counter()
        analyzed, params = load_run(name, directory, kind, config, options, replicated(mesh))
        means = measure_run(analyzed, params, config, options, mesh)
        analyzed_runs.append(analyzed)
        summaries.append(RunSummary(name, analyzed.kind, means, options.cls))
        if options.pictures and jax.process_count() == 1:  # drawing needs whole arrays on one host
            maps.append(
                (name, attention_maps(analyzed.method, params, *_picture_images(analyzed, options, config)))
            )
        log(f"{name}: {means.images} images in {time.perf_counter() - started:.1f} s")
    if jax.process_index() == 0:
        write_report(config, options, run_directory.path, analyzed_runs, summaries, maps)
        run_directory.discard_replaced()
    return 0


def measure_run(
    analyzed: AnalyzedRun, params: Params, config: Config, options: AnalysisOptions, mesh: jax.sharding.Mesh
) -> NetworkMeans:
    """Means over one run's images. Raises ConfigError where CKA cannot be computed as the options say."""
    group = min(options.cka_batch, len(analyzed.images)) if options.cka == "minibatch" else 0
    features = None if options.cka == "none" else options.cka_features
    if features and len(analyzed.images) < MIN_ROWS:
        raise ConfigError(
            f"{analyzed.images.name} has {len(analyzed.images)} images, but CKA needs {MIN_ROWS}: pass --config.job.cka=none"
        )
    if features == "cls" and not analyzed.method.net.prefix:
        raise ConfigError(
            f"config.job.cka_features=cls, but {analyzed.directory} has no CLS token: use flatten or pool"
        )
    tokens = max(len(where.coordinates) * where.windows for where in analyzed.method.net.geometry)
    if features == "tokens" and group * tokens > MAX_TOKEN_ROWS:
        raise ConfigError(
            f"config.job.cka_batch={group} images of {tokens} tokens are too many rows for CKA: take at most"
            f" {MAX_TOKEN_ROWS // tokens} of them, or other features"
        )
    measured = MeasureOptions(options.units, options.jensen_shannon, features, group, options.embedding)
    step = math.lcm(max(group, 1), mesh.size)
    batch = step * -(-options.batch // step)
    return measure(
        make_measure_step(analyzed.method, measured, mesh),
        params,
        _run_batches(analyzed, batch, config, mesh),
        geometry=analyzed.method.net.geometry,
        units=options.units,
    )


def _run_batches(
    analyzed: AnalyzedRun, size: int, config: Config, mesh: jax.sharding.Mesh
) -> Iterator[Batch]:
    batches = evaluation_batches(
        analyzed.images,
        analyzed.method.feature_view,
        batch_size=size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
    )
    with Progress(f"attention of {analyzed.name}", len(analyzed.images)) as progress:
        for batch in batches:
            yield place({name: batch[name] for name in ("image", "valid")}, batch_sharding(mesh))
            progress.update(min(size, len(analyzed.images) - progress.done))


def _picture_images(
    analyzed: AnalyzedRun, options: AnalysisOptions, config: Config
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """uint8 [job.pictures, H, W, 3] of as many classes as possible, and the class of each."""
    sample = over_classes(analyzed.images, options.pictures)
    spec, threads = analyzed.method.feature_view, config.data.threads
    batch = next(evaluation_batches(sample, spec, batch_size=len(sample), threads=threads))
    names = tuple(label_text(int(label), sample.class_names) for label in batch["label"])
    return np.asarray(batch["image"]), names


__all__ = ["check_job", "run"]
