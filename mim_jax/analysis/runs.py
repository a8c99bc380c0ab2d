"""The task `analyze`: its options, and the runs that it loads and compares."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated

import jax
from etils.epath import Path

from mim_jax.analysis.attention_metrics import CLS, UNITS
from mim_jax.analysis.cka import FEATURES, MIN_ROWS
from mim_jax.analysis.verdict import KINDS, kind_of
from mim_jax.config.check import ConfigError, build, one_of
from mim_jax.config.kinds import MOST, Count, CountOrZero, Range, Text, words
from mim_jax.config.schema import Config, resolved
from mim_jax.data import Dataset, evenly_spaced
from mim_jax.methods import Method
from mim_jax.models.vit import Params
from mim_jax.storage import is_bucket, parse_path
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.datasets import open_split
from mim_jax.training.pretrained import is_weights_file, read_run, read_weights_file, with_network_of_weights
from mim_jax.training.run_directory import read_config

ESTIMATES = ("minibatch", "biased", "none")


@dataclasses.dataclass(frozen=True)
class AnalysisOptions:
    """What is analysed, and how."""

    kinds: Text = ""  # mim | supervised | other for each run, in order; empty = by its method
    step: CountOrZero | None = (
        None  # of every run's checkpoint; None = the last, and the run must be finished
    )
    images: Annotated[int, Range(MIN_ROWS, MOST)] = 256  # spread evenly over the test split
    batch: Count = 32  # images at a time; rounded up so that devices and CKA's minibatches divide it
    units: Annotated[str, words(*UNITS)] = (
        "px"  # of distances: px (of the network's input) | patch | unit (of coordinates i / (n - 1))
    )
    cls: Annotated[str, words(*CLS)] = (
        "drop"  # keys that are CLS: drop | renorm (the others sum to 1); the tables hold both
    )
    jensen_shannon: bool = False  # a second measure of diversity, bounded by log 2; triples the cost
    cka: Annotated[str, words(*ESTIMATES)] = (
        "minibatch"  # minibatch (unbiased) | biased (over all images at once: pool or cls only) | none
    )
    cka_features: Annotated[str, words(*FEATURES)] = (
        "flatten"  # of an image: flatten (all tokens, no CLS) | pool | cls | tokens (a row each)
    )
    cka_batch: Annotated[int, Range(MIN_ROWS, MOST)] = (
        32  # images of a minibatch; with tokens take few: each brings all its tokens
    )
    embedding: bool = False  # the tokens before the first block are CKA's layer 0
    pictures: CountOrZero = 4  # images in the pictures of attention; 0 = none


def check_job(config: Config) -> AnalysisOptions:
    """The options of the task. Raises ConfigError."""
    options = build(AnalysisOptions, config.job, "config.job")
    if not config.runs.strip():
        raise ConfigError("config.runs names no run: pass --config.runs=DIRECTORY_A,DIRECTORY_B")
    if options.cka == "biased" and options.cka_features not in ("pool", "cls"):
        raise ConfigError(
            f"config.job.cka=biased keeps the features of all images, and {options.cka_features} are too many: take pool or cls"
        )
    return options


RUN_IMAGES = "init"
"""config.data.source of an analysis that takes each run's own images."""


@dataclasses.dataclass(frozen=True)
class AnalyzedRun:
    """A loaded run. step: of its checkpoint; None for imported weights. images: those it is analysed on."""

    name: str
    kind: str
    directory: Path
    method: Method
    step: int | None
    images: Dataset
    config: Config


def short_names(runs: str) -> dict[str, Path]:
    """Runs (directories, or files of weights) by short names: the parts of their paths that differ.

    A/mae-0/run and A/simmim-0/run are mae-0 and simmim-0.

    Raises:
        ConfigError: none is given, or one twice.
    """
    paths = [parse_path(part.strip(), "config.runs") for part in runs.split(",") if part.strip()]
    if not paths:
        raise ConfigError("config.runs names no run: pass --config.runs=DIRECTORY_A,DIRECTORY_B")
    absolute = [path if is_bucket(path) else Path(os.path.abspath(path)) for path in paths]
    for path, resolved_path in zip(paths, absolute, strict=True):
        if absolute.count(resolved_path) > 1:
            raise ConfigError(f"config.runs names {path} twice")
    if len(paths) == 1:
        return {absolute[0].name: paths[0]}
    parts = [path.parts for path in absolute]
    for end, rest in ((0, slice(1, None)), (-1, slice(None, -1))):
        while len({names[end] for names in parts}) == 1 and all(len(names) > 1 for names in parts):
            parts = [names[rest] for names in parts]
    return {"/".join(names): path for names, path in zip(parts, paths, strict=True)}


def check_comparable(directories: dict[str, Path], step: int | None) -> None:
    """Reads all configurations before any weights.

    Raises:
        ConfigError: a directory without a readable run, an unfinished run, or different resolutions.
    """
    sizes = {}
    for name, directory in directories.items():
        if is_weights_file(str(directory)):
            config = with_network_of_weights(Config(), str(directory))
        else:
            config = read_config(directory)
            if step is None:
                _check_finished(directory, config)
        sizes[name] = config.model.image_size
    if len({str(size) for size in sizes.values()}) > 1:
        listed = ", ".join(f"{name} {_format_size(size)}" for name, size in sizes.items())
        raise ConfigError(
            f"the runs see images of different resolutions ({listed} px), so distances cannot be compared: analyse those of"
            " one resolution together"
        )


def _check_finished(directory: Path, config: Config) -> None:
    steps = resolved(config.schedule.steps)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        last_saved = max(checkpoints.steps(), default=0)
    if last_saved < steps:
        raise ConfigError(
            f"{directory} is not finished: {last_saved} of its {steps} steps are saved; finish it, or name a step that all runs have"
            " saved, --config.job.step=N"
        )


def load_run(
    name: str,
    directory: Path,
    kind: str,
    config: Config,
    options: AnalysisOptions,
    sharding: jax.sharding.Sharding,
) -> tuple[AnalyzedRun, Params]:
    """A run's network and its images: its own, unless the analysis names others.

    Raises:
        ConfigError, CheckpointError, DataError: one sentence.
    """
    step: int | None = None
    if is_weights_file(str(directory)):
        run_config, method, params = read_weights_file(directory)
        params = jax.device_put(params, sharding)
        kind = kind or "other"
        if config.data.source == RUN_IMAGES:
            raise ConfigError(
                f"{directory} brings no images along: name some, --config.data.source=folder:PATH or another source"
            )
    else:
        run_config, method, params, step = read_run(directory, options.step, sharding=sharding)
    data = run_config.data if config.data.source == RUN_IMAGES else config.data
    dataset = open_split(data, data.test_split, run_config.seed)
    sample = evenly_spaced(dataset, options.images)
    run = AnalyzedRun(name, kind or kind_of(run_config, method), directory, method, step, sample, run_config)
    return run, params


def parse_kinds(options: AnalysisOptions, count: int) -> Sequence[str]:
    """A kind per run; '' = by its method."""
    if not options.kinds:
        return [""] * count
    kinds = [one_of("config.job.kinds", kind.strip(), KINDS) for kind in options.kinds.split(",")]
    if len(kinds) != count:
        raise ConfigError(f"config.job.kinds={options.kinds} names {len(kinds)} kinds for {count} runs")
    return kinds


def _format_size(size: int | tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
