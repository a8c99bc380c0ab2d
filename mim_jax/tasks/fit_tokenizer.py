"""The task `tokenizer`: k-means on a frozen network's features of image patches (k-CLIP, docs/papers/mapet.md 8.1), kept as one file."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
from jax.experimental import multihost_utils

from mim_jax.config.check import ConfigError, build
from mim_jax.config.kinds import Count, Heads, Range, Side, Text, Vocabulary, words
from mim_jax.config.schema import Config
from mim_jax.data import Dataset, ImageView, Subset, evaluation_batches, even_numbers, make_crop
from mim_jax.data.placement import LocalDevices
from mim_jax.errors import ExitCode
from mim_jax.models.vit import Params
from mim_jax.progress import format_duration, log
from mim_jax.storage import open_to_append, require_local
from mim_jax.targets.pixels import to_unit
from mim_jax.tasks.codes_report import SHOWN_IMAGES, most_used, write_codes_report
from mim_jax.tokenizers.features import FeatureFiles
from mim_jax.tokenizers.kmeans import KMeansOptions, KMeansProgress, KMeansResult, fit_kmeans
from mim_jax.tokenizers.teachers import Teacher, load_teacher
from mim_jax.tokenizers.tokenizer import kmeans_ids, save_kmeans
from mim_jax.training.datasets import open_split
from mim_jax.training.run_directory import RunDirectory
from mim_jax.training.shutdown import Shutdown

FILE = "tokenizer.safetensors"
REPORT = "report.html"
METRICS = "metrics.jsonl"
BATCH = 64


@dataclasses.dataclass(frozen=True)
class TokenizerOptions:
    """config.job of the task `tokenizer`."""

    teacher: Annotated[str, words("pixels", "clip_resnet", "vit")] = (
        "pixels"  # pixels (the patches themselves) | clip_resnet | vit
    )
    weights: Text = ""  # of the teacher, FILE.safetensors; empty for pixels
    image_size: Side | None = None  # of the teacher's view, pixels; None = the size its weights were made for
    patch: Side = 16  # of pixels
    heads: Heads | None = None  # of a vit; None = width / 64
    vocabulary: Vocabulary = 8192
    points_per_code: Count = 512  # features that k-means sees, for each code
    iterations: Annotated[int, Range(1, 10**6)] = 20
    restarts: Annotated[int, Range(1, 1000)] = 5  # the one of least inertia is kept
    start: Annotated[str, words("subset", "plus_plus")] = (
        "subset"  # subset (random points) | plus_plus (k-means++)
    )
    mode: Annotated[str, words("lloyd", "minibatch")] = "lloyd"  # lloyd | minibatch
    features_dtype: Annotated[str, words("float32", "float16")] = (
        "float32"  # of the features on the disk: float32 | float16
    )
    keep_features: bool = False  # else they are deleted at the end


def check_job(config: Config) -> TokenizerOptions:
    """The options of the task. Raises ConfigError."""
    options = build(TokenizerOptions, config.job, "config.job")
    if config.augment.crop == "random_resized" or config.augment.flip:
        raise ConfigError(
            "a tokenizer learns from one fixed view of each image: pass --config.augment.crop=centre_square"
            " --config.augment.flip=False"
        )
    return options


def run(config: Config, workdir: str | os.PathLike[str], overwrite: bool = False) -> int:
    """Features, then k-means, then the file and a report; goes on where it was stopped. The exit code.

    Args:
        overwrite: whether what such a task has left there is replaced: moved aside, and removed at the end.
    """
    with RunDirectory(workdir, "tokenizer", overwrite=overwrite) as run_directory:
        return _run(config, run_directory)


def _run(config: Config, run_directory: RunDirectory) -> int:
    options = check_job(config)
    workdir = require_local(run_directory.path, "k-means maps its features from a disk into memory")
    size = None if options.image_size is None else (options.image_size, options.image_size)
    teacher, params = load_teacher(
        options.teacher,
        options.weights,
        image_size=size,
        patch=options.patch,
        heads=options.heads,
        mean=config.data.mean,
        std=config.data.std,
    )
    data, augment = config.data, config.augment
    dataset = open_split(data, data.split, config.seed)
    crop = make_crop(augment.crop, augment.scale, augment.ratio)
    view = ImageView(teacher.image_size, crop, resample=augment.resample)
    patches = len(dataset) * teacher.grid[0] * teacher.grid[1]
    files = FeatureFiles(
        workdir / "features",
        dataset,
        teacher,
        share=min(1.0, options.vocabulary * options.points_per_code / patches),
        seed=config.seed,
        dtype=options.features_dtype,
    )
    run_directory.acquire(config)
    log(f"data     {dataset.describe()}")
    log(f"teacher  {options.teacher}, {teacher.image_size} px, {teacher.grid} features an image")
    log(f"points   {files.describe()}")
    if (workdir / FILE).exists():
        log(f"finished before: {workdir / FILE}")
        return 0
    with Shutdown() as shutdown:
        complete = files.write(
            params, view, batch_size=BATCH, threads=data.threads, stop=lambda: shutdown.requested
        )
        result = _fit(config, options, files, workdir, shutdown) if complete else None
    if result is None:
        run_directory.keep_replaced()
        log("asked to stop; the same command, without --overwrite, goes on")
        return ExitCode.STOPPED
    if jax.process_index() == 0:
        log(
            f"result   inertia {result.inertia:.6g} over {result.points} features, {100 * result.usage:.2f} % of the codes"
            f" used, perplexity {result.perplexity:.1f}"
        )
        save_kmeans(workdir / FILE, teacher, params, result.centroids)
        _report(workdir, dataset, view, teacher, {"centroids": result.centroids, "teacher": params})
        log(f"tokenizer {workdir / FILE}\nreport    {workdir / REPORT}")
        if not options.keep_features:
            shutil.rmtree(files.folder)
        shutil.rmtree(workdir / "kmeans")
        run_directory.discard_replaced()
    return 0


class _Stopped(Exception):
    """The run was asked to stop; k-means has saved where it is."""


def _fit(
    config: Config, options: TokenizerOptions, files: FeatureFiles, workdir: Path, shutdown: Shutdown
) -> KMeansResult | None:
    """The k-means over the features; None = asked to stop."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all features are written")
    kmeans_options = KMeansOptions(
        clusters=options.vocabulary,
        iterations=options.iterations,
        restarts=options.restarts,
        start=options.start,
        mode=options.mode,
        max_points_per_centroid=options.points_per_code,
        seed=config.seed,
    )
    passes = 0

    def report(progress: KMeansProgress) -> None:
        nonlocal passes
        passes += 1
        log(
            f"restart {progress.restart + 1}/{progress.restarts} pass {progress.iteration}/{progress.iterations}:"
            f" inertia {progress.inertia:.6g}, {100 * progress.usage:.1f} % of the codes used, perplexity"
            f" {progress.perplexity:.0f}, {progress.seconds:.1f} s, left {format_duration(progress.eta)}"
        )
        if jax.process_index() == 0:
            with open_to_append(workdir / METRICS) as file:
                file.write(json.dumps({**progress._asdict(), "unix_time": time.time()}) + "\n")
        if shutdown.requested_at(passes):
            raise _Stopped

    try:
        return fit_kmeans(files, kmeans_options, directory=workdir / "kmeans", report=report)
    except _Stopped:
        return None
    except ValueError as error:
        raise ConfigError(f"k-means: {error}") from error


def _report(workdir: Path, dataset: Dataset, view: ImageView, teacher: Teacher, params: Params) -> None:
    """The page of the codes, from images spread over the dataset."""
    shown = Subset(dataset, even_numbers(len(dataset), SHOWN_IMAGES))
    devices = LocalDevices()
    placed = jax.device_put(params, devices.replicated)
    tokenise = jax.jit(lambda params, images: kmeans_ids(teacher)(params, to_unit(images)))
    batches_of_ids = [
        np.asarray(tokenise(placed, jax.device_put(batch["image"], devices.sharded)))[batch["valid"]]
        for batch in evaluation_batches(shown, view, batch_size=devices.round_up(BATCH))
    ]
    ids = np.concatenate(batches_of_ids)
    counts = np.bincount(ids.ravel(), minlength=len(params["centroids"]))
    examples = most_used(shown, view, teacher.grid, counts, ids)
    properties = {
        "teacher": str(teacher.config["kind"]),
        "counted on": f"{len(ids)} of {len(dataset)} images of {dataset.name}, spread over all",
    }
    write_codes_report(workdir / REPORT, f"Codes of {dataset.name}", properties, counts, examples)
