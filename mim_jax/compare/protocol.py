"""What is compared, and how: the configuration of a comparison, checked."""

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
"""Key of a stage's time over all its sessions, for columns."""

RUN = "{run}"
WANTED = (
    "a folder of images with a folder for every class, and, where a part is to be held out as it stands, train and test (or"
    " val, valid, validation) above them"
)
"""What --config.data takes: the same as the source folder:PATH."""
BETTER = ("higher", "lower", "plain")


class Column(NamedTuple):
    """A column of the table: the final value of `key` in a stage's metrics, times `scale`."""

    title: str
    stage: str
    key: str
    better: str = "plain"  # higher | lower: a quality, arms are judged by it; plain: only shown
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Every key of a comparison's configuration. Sections of settings are nested: shared.schedule.epochs."""

    # PATH of the source folder:PATH of all arms; empty = shared.data.source says.
    data: Text = ""
    arms: dict[str, Any] = dataclasses.field(default_factory=dict)  # name -> FILE[:PRESET][,key=value...]
    # Finished runs or weights, joined by commas: an arm with {run} in it is there for each of them.
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
    def chosen(self) -> tuple[str, ...]:
        """Names of the arms that take part."""
        return tuple(self.only.split(",")) if self.only else tuple(self.arms)

    @property
    def table(self) -> tuple[Column, ...]:
        """The columns."""
        return tuple(Column(*column) for column in self.columns)


def default_comparison() -> ml_collections.ConfigDict:
    """The tree with its defaults, as what a config file edits; sections take any key, and keep their order."""
    config = ml_collections.ConfigDict(sort_keys=False)
    sections = []
    for field in dataclasses.fields(Protocol):
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


def read_protocol(config: Mapping[str, Any]) -> Protocol:
    """Checks a comparison's configuration.

    Raises:
        ConfigError: one sentence that names the key.
    """
    protocol = _for_each_run(build(Protocol, config))
    for name in protocol.arms:
        if not re.fullmatch(r"[\w+.-]+", name):
            raise ConfigError(
                f"config.arms: {name!r} names directories, so it must be letters, digits and _ + . -"
            )
    for name in protocol.evaluate:
        if not re.fullmatch(r"\w+", name) or name in (PRETRAIN, CALIBRATION):
            raise ConfigError(f"config.evaluate: {name!r} cannot be the name of a stage")
    for name in protocol.evaluate_shared:
        one_of("a key of config.evaluate_shared", name, protocol.evaluate)
    for name in protocol.chosen:
        one_of("a name in config.only", name, protocol.arms)
    if not protocol.chosen:
        raise ConfigError("config.arms is empty: there is nothing to compare")
    _check_columns(protocol)
    _check_budget(protocol)
    return _with_data(protocol)


def _for_each_run(protocol: Protocol) -> Protocol:
    """Arms with {run} in their spec, once for each of `runs`: "NAME" becomes "NAME-RUN"."""
    if not protocol.runs:
        if waiting := [name for name, spec in protocol.arms.items() if RUN in str(spec)]:
            raise ConfigError(
                f"config.runs is empty, but {', '.join(waiting)} start from a run: pass --config.runs=DIRECTORY_A,DIRECTORY_B"
            )
        return protocol
    runs = {Path(run.strip()).name: run.strip() for run in protocol.runs.split(",")}
    if len(runs) != protocol.runs.count(",") + 1:
        raise ConfigError(
            f"config.runs={protocol.runs}: two of them have the same last name; arms are named by it"
        )
    arms: dict[str, Any] = {}
    for name, spec in protocol.arms.items():
        if RUN in str(spec):
            arms |= {f"{name}-{own}": str(spec).replace(RUN, path) for own, path in runs.items()}
        else:
            arms[name] = spec
    return dataclasses.replace(protocol, arms=arms)


def _check_columns(protocol: Protocol) -> None:
    if not protocol.columns:
        raise ConfigError("config.columns is empty: say which numbers the table shows")
    for entry in protocol.columns:
        if not isinstance(entry, tuple | list) or not 3 <= len(entry) <= 5:
            raise ConfigError(f"config.columns: {entry!r} must be (title, stage, metric, better, scale)")
        column = Column(*entry)
        one_of(f"the stage of the column {column.title!r}", column.stage, protocol.stages)
        one_of(f"what is better in the column {column.title!r}", column.better, BETTER)


def _check_budget(protocol: Protocol) -> None:
    if protocol.budget == "images" and "schedule.epochs" not in flatten(protocol.shared):
        raise ConfigError("config.budget=images needs config.shared.schedule.epochs: the epochs of every arm")


def _with_data(protocol: Protocol) -> Protocol:
    """`data` as the source that all stages share."""
    if not protocol.data:
        if "data.source" in flatten(protocol.shared) or protocol.runs:
            return protocol
        raise ConfigError(f"config.data is empty: give --config.data=PATH, {WANTED}")
    _check_folder(protocol)
    source = {"data": {"source": f"folder:{protocol.data}"}}
    evaluate_shared = {
        name: flatten(source) | flatten(protocol.evaluate_shared.get(name, {})) for name in protocol.evaluate
    }
    return dataclasses.replace(
        protocol, shared=flatten(source) | flatten(protocol.shared), evaluate_shared=evaluate_shared
    )


def _check_folder(protocol: Protocol) -> None:
    """Opens both splits as every run will: what is one is decided by the source `folder` alone."""
    try:
        train, _ = (open_dataset(f"folder:{protocol.data}", split) for split in ("train", "test"))
    except DataError as error:
        raise ConfigError(f"config.data={protocol.data}: {error} PATH is {WANTED}") from error
    if protocol.evaluate and not train.num_classes:
        raise ConfigError(
            f"config.data={protocol.data}: its images have no classes, which {' and '.join(protocol.evaluate)} need; PATH is"
            f" {WANTED}"
        )
