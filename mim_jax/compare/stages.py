"""From the configuration to commands: the stages of an arm and a seed, and how long they are under a budget in seconds.

Under that budget a short run per arm measures images/s; evaluation and saving do not count as training. Keys that count
epochs (a warm-up, AMT's refreshes) are scaled so that they keep their share of the run.
"""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_jax.compare.config import CALIBRATION, PRETRAIN, ComparisonConfig, flatten
from mim_jax.config.check import ConfigError, check, nearest, to_dict
from mim_jax.config.files import load, override

LENGTH_KEYS = ("schedule.steps", "schedule.epochs")


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """A configuration file and what is set on top of it."""

    file: str  # FILE[:PRESET]
    settings: Mapping[str, Any]  # "a.b" -> value
    config: Mapping[str, Any]  # all keys with the settings applied, "a.b" -> value

    def with_settings(self, settings: Mapping[str, Any]) -> "RunSpec":
        """The run with further settings, those of `method.` only where its method has them."""
        return _run_spec(self.file, {**self.settings, **_applicable(settings, self.config)})

    def arguments(self) -> list[str]:
        """The run for mim_jax.main's command line."""
        return [
            f"--config={self.file}",
            *(f"--config.{key}={value}" for key, value in self.settings.items() if value is not None),
        ]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One process of a comparison."""

    key: str  # of its result
    title: str
    name: str
    run: RunSpec
    workdir: Path
    log: Path
    init: Path | None = None  # the run that it evaluates
    required: tuple[str, ...] = ()  # metrics without which it has failed

    def arguments(self) -> list[str]:
        """All that follows `python -m mim_jax.main`."""
        init = [] if self.init is None else [f"--config.init={self.init}"]
        return [*self.run.arguments(), *init, f"--workdir={self.workdir}"]

    def command(self) -> str:
        """The whole command, quoted for a shell."""
        return shlex.join(["python", "-m", "mim_jax.main", *self.arguments()])


def parse_spec(spec: str, shared: Mapping[str, Any], title: str) -> RunSpec:
    """A spec FILE[:PRESET][,key=value...] with shared settings, over which its own take precedence.

    Raises:
        ConfigError: naming `title`.
    """
    file, *pairs = spec.split(",")
    spec_settings = dict(pair.partition("=")[::2] for pair in pairs)
    try:
        config = flatten(to_dict(check(load(file))))
        return _run_spec(file, {**_applicable(flatten(shared), config), **spec_settings})
    except ConfigError as error:
        raise ConfigError(f"{title}: {error}") from error


def sets_length(spec: str) -> bool:
    """Whether a spec sets the length of its run itself, so that no budget applies."""
    return any(pair.partition("=")[0] in LENGTH_KEYS for pair in spec.split(",")[1:])


def result_key(arm: str, seed: int, stage: str) -> str:
    """The name of a stage's result."""
    return f"{arm}-{seed}-{stage}"


def cell_stages(
    comparison: ComparisonConfig, arm: str, seed: int, pretrain: RunSpec, root: Path
) -> list[Stage]:
    """The stages of an arm and a seed, in order."""
    folder = root / f"{arm}-{seed}"
    runs = {PRETRAIN: pretrain} | {name: evaluation(comparison, name) for name in comparison.evaluate}
    return [
        Stage(
            key=result_key(arm, seed, name),
            title=f"{arm}, seed {seed}, {name}",
            name=name,
            run=run.with_settings({"seed": seed}),
            workdir=folder / name,
            log=folder / f"{name}.log",
            init=None if name == PRETRAIN else folder / PRETRAIN,
        )
        for name, run in runs.items()
    ]


def pretraining(comparison: ComparisonConfig, arm: str) -> RunSpec:
    """The pre-training of an arm."""
    return parse_spec(comparison.arms[arm], comparison.shared, f"config.arms.{arm}")


def evaluation(comparison: ComparisonConfig, name: str) -> RunSpec:
    """A stage that evaluates every pre-trained network."""
    shared = comparison.evaluate_shared.get(name, {})
    return parse_spec(comparison.evaluate[name], shared, f"config.evaluate.{name}")


def calibration_key(arm: str) -> str:
    """The name of a calibration's result."""
    return f"{arm}-{CALIBRATION}"


def calibration_stage(
    comparison: ComparisonConfig, arm: str, run: RunSpec, root: Path, required: tuple[str, ...]
) -> Stage:
    """The short run of an arm that measures its speed, in a scratch directory."""
    steps = comparison.calibration_steps
    settings = {
        "schedule.steps": steps,
        "schedule.warmup_steps": 0,
        "log.every_steps": max(1, steps // 10),
        **flatten(comparison.calibration),
    }
    return Stage(
        key=calibration_key(arm),
        title=f"{arm}, {CALIBRATION}",
        name=CALIBRATION,
        run=run.with_settings(settings),
        workdir=root / CALIBRATION / arm,
        log=root / CALIBRATION / f"{arm}.log",
        required=required,
    )


def steps_in_budget(comparison: ComparisonConfig, run: RunSpec, images_per_sec: float) -> int:
    """Updates in the seconds of the budget."""
    return max(1, round(comparison.seconds * images_per_sec / run.config["data.batch_size"]))


def fit_to_budget(
    comparison: ComparisonConfig, run: RunSpec, images_per_sec: float, calibration_epochs: float
) -> RunSpec:
    """The run, as long as the budget's seconds."""
    config, steps = run.config, steps_in_budget(comparison, run, images_per_sec)
    cooldown = config["schedule.cooldown_epochs"]
    steps_per_epoch = comparison.calibration_steps / (calibration_epochs + cooldown)
    factor = steps / steps_per_epoch / (config["schedule.epochs"] + cooldown)
    scaled = {
        key: max(1, round(config[key] * factor)) if isinstance(config[key], int) else config[key] * factor
        for key in comparison.epoch_keys
        if config.get(key) is not None
    }
    return run.with_settings({"schedule.steps": steps, **scaled})


def _run_spec(file: str, settings: Mapping[str, Any]) -> RunSpec:
    config = load(file)
    known = [f"config.{key}" for key in flatten(to_dict(check(config)))]
    for key in settings:
        if f"config.{key}" not in known:
            raise ConfigError(f"unknown key config.{key}{nearest(f'config.{key}', known)}")
    return RunSpec(file, dict(settings), flatten(to_dict(check(override(config, settings)))))


def _applicable(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.startswith("method.") or key in config}
