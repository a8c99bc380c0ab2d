"""The configuration of a comparison, and its checks."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ml_collections

from mim_jax.config.check import ConfigError, build, one_of
from mim_jax.config.kinds import MOST, Name, Range, Seed, Text, Values, words
from mim_jax.data import DataError, open_dataset

PRETRAIN = "pretrain"
CALIBRATION = "calibration"
WALL_SECONDS = "wall_seconds"
"""Metric of a stage's time over all its sessions."""

RUN_PLACEHOLDER = "{run}"
DATA_LAYOUT = (
    "a folder of images with a folder for every class, and, where a part is to be held out as it stands, train and test (or"
    " val, valid, validation) above them"
)
"""What --config.data takes: as the dataset folder:PATH."""
BETTER = ("higher", "lower", "plain")


class Column(NamedTuple):
    """A column of the table: the final value of `key` in a stage's metrics, times `scale`."""

    title: str
    stage: str
    key: str
    better: str = "plain"  # higher | lower: arms are ranked by it; plain: a cost or a count, shown as it is
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """Every key of a comparison's configuration. Sections of settings are nested: shared.schedule.epochs."""

    # PATH of the dataset folder:PATH of all arms; empty = shared.data.source.
    data: Text = ""
    arms: dict[str, Any] = dataclasses.field(default_factory=dict)  # name -> FILE[:PRESET][,key=value...]
    # Finished runs or weights, joined by commas: an arm with {run} in its spec becomes one arm per run.
    runs: Text = ""
    only: Text = ""  # names of arms, joined by commas; empty = all
    seeds: Annotated[tuple[Seed, ...], Values(different=True)] = (0,)
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings of every arm
    # Stage -> FILE[:PRESET][,key=value...].
    evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluate_shared: dict[str, Any] = dataclasses.field(default_factory=dict)  # stage -> its settings
    columns: tuple[Any, ...] = ()  # of the fields of `Column`
    budget: Annotated[str, words("images", "seconds")] = (
        "images"  # images (shared.schedule.epochs) | seconds (of training, from a calibration)
    )
    seconds: Annotated[float, Range(0, 1e9, above=True)] = 600.0  # of training an arm, budget=seconds
    calibration_steps: Annotated[int, Range(2, MOST)] = 100
    calibration: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings of the calibrations
    epoch_keys: tuple[Name, ...] = ()  # keys in epochs that keep their share of a run, budget=seconds

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of a cell, in order."""
        return PRETRAIN, *self.evaluate

    @property
    def arm_names(self) -> tuple[str, ...]:
        """Arms of this comparison: those of `only`, else all."""
        return tuple(self.only.split(",")) if self.only else tuple(self.arms)

    @property
    def table_columns(self) -> tuple[Column, ...]:
        """Columns of the table, in order."""
        return tuple(Column(*column) for column in self.columns)


def default_comparison() -> ml_collections.ConfigDict:
    """A ConfigDict with all defaults for config files to edit; sections take any key and keep their order."""
    config = ml_collections.ConfigDict(sort_keys=False)
    sections = []
    for field in dataclasses.fields(ComparisonConfig):
        if field.default_factory is dict:
            config[field.name] = ml_collections.ConfigDict(sort_keys=False)
            sections.append(field.name)
        else:
            config[field.name] = field.default
    config.lock()
    for name in sections:
        config[name].unlock()
    return config


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as "a.b" -> value."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_comparison(config: Mapping[str, Any]) -> ComparisonConfig:
    """Checks a comparison's configuration.

    Raises:
        ConfigError: one sentence that names the key.
    """
    comparison = _expand_runs(build(ComparisonConfig, config))
    for name in comparison.arms:
        if not re.fullmatch(r"[\w+.-]+", name):
            raise ConfigError(
                f"config.arms: {name!r} names directories, so it must be letters, digits and _ + . -"
            )
    for name in comparison.evaluate:
        if not re.fullmatch(r"\w+", name) or name in (PRETRAIN, CALIBRATION):
            raise ConfigError(f"config.evaluate: {name!r} cannot be the name of a stage")
    for name in comparison.evaluate_shared:
        one_of("a key of config.evaluate_shared", name, comparison.evaluate)
    for name in comparison.arm_names:
        one_of("a name in config.only", name, comparison.arms)
    if not comparison.arm_names:
        raise ConfigError("config.arms is empty: there is nothing to compare")
    _check_columns(comparison)
    _check_budget(comparison)
    return _with_data(comparison)


def _expand_runs(comparison: ComparisonConfig) -> ComparisonConfig:
    """Arms with {run} in their spec become one arm per run: "NAME" becomes "NAME-RUN"."""
    if not comparison.runs:
        if templates := [name for name, spec in comparison.arms.items() if RUN_PLACEHOLDER in str(spec)]:
            raise ConfigError(
                f"config.runs is empty, but {', '.join(templates)} start from a run: pass --config.runs=DIRECTORY_A,DIRECTORY_B"
            )
        return comparison
    runs = {Path(run.strip()).name: run.strip() for run in comparison.runs.split(",")}
    if len(runs) != comparison.runs.count(",") + 1:
        raise ConfigError(
            f"config.runs={comparison.runs}: two of them have the same last name; arms are named by it"
        )
    arms: dict[str, Any] = {}
    for name, spec in comparison.arms.items():
        if RUN_PLACEHOLDER in str(spec):
            arms |= {
                f"{name}-{run_name}": str(spec).replace(RUN_PLACEHOLDER, path)
                for run_name, path in runs.items()
            }
        else:
            arms[name] = spec
    return dataclasses.replace(comparison, arms=arms)


def _check_columns(comparison: ComparisonConfig) -> None:
    if not comparison.columns:
        raise ConfigError("config.columns is empty: say which numbers the table shows")
    for entry in comparison.columns:
        if not isinstance(entry, tuple | list) or not 3 <= len(entry) <= 5:
            raise ConfigError(f"config.columns: {entry!r} must be (title, stage, metric, better, scale)")
        column = Column(*entry)
        one_of(f"the stage of the column {column.title!r}", column.stage, comparison.stages)
        one_of(f"what is better in the column {column.title!r}", column.better, BETTER)


def _check_budget(comparison: ComparisonConfig) -> None:
    if comparison.budget == "images" and "schedule.epochs" not in flatten(comparison.shared):
        raise ConfigError("config.budget=images needs config.shared.schedule.epochs: the epochs of every arm")


def _with_data(comparison: ComparisonConfig) -> ComparisonConfig:
    """`data` as the dataset that all stages share."""
    if not comparison.data:
        if "data.source" in flatten(comparison.shared) or comparison.runs:
            return comparison
        raise ConfigError(f"config.data is empty: give --config.data=PATH, {DATA_LAYOUT}")
    _check_folder(comparison)
    shared_data = {"data": {"source": f"folder:{comparison.data}"}}
    evaluate_shared = {
        name: flatten(shared_data) | flatten(comparison.evaluate_shared.get(name, {}))
        for name in comparison.evaluate
    }
    return dataclasses.replace(
        comparison, shared=flatten(shared_data) | flatten(comparison.shared), evaluate_shared=evaluate_shared
    )


def _check_folder(comparison: ComparisonConfig) -> None:
    """Opens both splits as every run will: the dataset `folder` alone decides what is a split."""
    try:
        train, _ = (open_dataset(f"folder:{comparison.data}", split) for split in ("train", "test"))
    except DataError as error:
        raise ConfigError(f"config.data={comparison.data}: {error} PATH is {DATA_LAYOUT}") from error
    if comparison.evaluate and not train.num_classes:
        raise ConfigError(
            f"config.data={comparison.data}: its images have no classes, which {' and '.join(comparison.evaluate)} need; PATH is"
            f" {DATA_LAYOUT}"
        )
