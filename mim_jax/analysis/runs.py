"""Which runs are looked at, on which images, and whether they can be compared."""

import dataclasses
import os
from collections.abc import Sequence

import jax
from etils.epath import Path

from mim_jax.analysis.options import AnalysisOptions
from mim_jax.analysis.verdict import KINDS, kind_of
from mim_jax.config.check import ConfigError, one_of
from mim_jax.config.schema import Config, resolved
from mim_jax.data import Dataset, evenly_spaced
from mim_jax.methods import Method
from mim_jax.models.vit import Params
from mim_jax.storage import is_bucket, parse_path
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.datasets import open_split
from mim_jax.training.pretrained import is_weights_file, read_run, read_weights_file, with_network_of_weights
from mim_jax.training.workdir import read_config

OWN = "init"
"""config.data.source of an analysis whose runs are looked at on their own images."""


@dataclasses.dataclass(frozen=True)
class LookedAt:
    """A run as it is analysed. step: updates it had seen; None for somebody else's weights."""

    name: str
    kind: str
    directory: Path
    method: Method
    step: int | None
    images: Dataset
    config: Config


def named(runs: str) -> dict[str, Path]:
    """Runs (directories, or files of weights) by short names: the parts of their paths that differ.

    A/mae-0/run and A/simmim-0/run are mae-0 and simmim-0.

    Raises:
        ConfigError: none is given, or one twice.
    """
    paths = [parse_path(part.strip(), "config.runs") for part in runs.split(",") if part.strip()]
    if not paths:
        raise ConfigError("config.runs names no run: pass --config.runs=DIRECTORY_A,DIRECTORY_B")
    absolute = [path if is_bucket(path) else Path(os.path.abspath(path)) for path in paths]
    for path, where in zip(paths, absolute, strict=True):
        if absolute.count(where) > 1:
            raise ConfigError(f"config.runs names {path} twice")
    if len(paths) == 1:
        return {absolute[0].name: paths[0]}
    parts = [path.parts for path in absolute]
    for end, rest in ((0, slice(1, None)), (-1, slice(None, -1))):
        while len({own[end] for own in parts}) == 1 and all(len(own) > 1 for own in parts):
            parts = [own[rest] for own in parts]
    return {"/".join(own): path for own, path in zip(parts, paths, strict=True)}


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
        listed = ", ".join(f"{name} {_side(size)}" for name, size in sizes.items())
        raise ConfigError(
            f"the runs see images of different resolutions ({listed} px), so distances cannot be compared: analyse those of"
            " one resolution together"
        )


def _check_finished(directory: Path, config: Config) -> None:
    steps = resolved(config.schedule.steps)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        found = max(checkpoints.steps(), default=0)
    if found < steps:
        raise ConfigError(
            f"{directory} is not finished: {found} of its {steps} steps are saved; finish it, or name a step that all runs have"
            " saved, --config.job.step=N"
        )


def read(
    name: str,
    directory: Path,
    kind: str,
    config: Config,
    options: AnalysisOptions,
    sharding: jax.sharding.Sharding,
) -> tuple[LookedAt, Params]:
    """A run's network and its images: its own, unless the analysis names others.

    Raises:
        ConfigError, CheckpointError, DataError: one sentence.
    """
    step: int | None = None
    if is_weights_file(str(directory)):
        own, method, params = read_weights_file(directory)
        params = jax.device_put(params, sharding)
        kind = kind or "other"
        if config.data.source == OWN:
            raise ConfigError(
                f"{directory} brings no images along: name some, --config.data.source=folder:PATH or another source"
            )
    else:
        own, method, params, step = read_run(directory, options.step, sharding=sharding)
    data = own.data if config.data.source == OWN else config.data
    source = open_split(data, data.test_split, own.seed)
    sample = evenly_spaced(source, options.images)
    return LookedAt(name, kind or kind_of(own, method), directory, method, step, sample, own), params


def given_kinds(options: AnalysisOptions, count: int) -> Sequence[str]:
    """A kind for each run, '' where its method says it."""
    if not options.kinds:
        return [""] * count
    kinds = [one_of("config.job.kinds", kind.strip(), KINDS) for kind in options.kinds.split(",")]
    if len(kinds) != count:
        raise ConfigError(f"config.job.kinds={options.kinds} names {len(kinds)} kinds for {count} runs")
    return kinds


def _side(size: int | tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)
