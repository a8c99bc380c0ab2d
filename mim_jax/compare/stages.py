"""From the protocol to commands: what is run for every arm and seed."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim_jax.compare.protocol import PRETRAIN, Protocol, flatten
from mim_jax.config.check import ConfigError, check, nearest, to_dict
from mim_jax.config.files import load, override

LENGTH_KEYS = ("schedule.steps", "schedule.epochs")


@dataclasses.dataclass(frozen=True)
class Job:
    """A configuration file and what is set on top of it."""

    file: str  # FILE[:PRESET]
    settings: Mapping[str, Any]  # "a.b" -> value
    config: Mapping[str, Any]  # all keys as the job has them, "a.b" -> value

    def with_settings(self, more: Mapping[str, Any]) -> "Job":
        """The job with further settings, those of `method.` only where its method has them."""
        return _job(self.file, {**self.settings, **_applicable(more, self.config)})

    def arguments(self) -> list[str]:
        """The job for mim_jax.main's command line."""
        return [
            f"--config={self.file}",
            *(f"--config.{key}={value}" for key, value in self.settings.items() if value is not None),
        ]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One process of a comparison."""

    key: str  # of its result
    title: str  # for people
    name: str
    job: Job
    workdir: Path
    log: Path
    init: Path | None = None  # the run that it evaluates

    def arguments(self) -> list[str]:
        """All that follows `python -m mim_jax.main`."""
        init = [] if self.init is None else [f"--config.init={self.init}"]
        return [*self.job.arguments(), *init, f"--workdir={self.workdir}"]

    def command(self) -> str:
        """The whole command, to be typed again."""
        return shlex.join(["python", "-m", "mim_jax.main", *self.arguments()])


def make_job(spec: str, shared: Mapping[str, Any], title: str) -> Job:
    """A spec FILE[:PRESET][,key=value...] with shared settings; its own keys win over these.

    Raises:
        ConfigError: naming `title`.
    """
    file, *pairs = spec.split(",")
    own = dict(pair.partition("=")[::2] for pair in pairs)
    try:
        config = flatten(to_dict(check(load(file))))
        return _job(file, {**_applicable(flatten(shared), config), **own})
    except ConfigError as error:
        raise ConfigError(f"{title}: {error}") from error


def own_length(spec: str) -> bool:
    """Whether a spec says itself how long its run is, so that no budget applies."""
    return any(pair.partition("=")[0] in LENGTH_KEYS for pair in spec.split(",")[1:])


def result_key(arm: str, seed: int, stage: str) -> str:
    """The name of a stage's result."""
    return f"{arm}-{seed}-{stage}"


def cell(protocol: Protocol, arm: str, seed: int, pretrain: Job, root: Path) -> list[Stage]:
    """The stages of an arm and a seed, in order."""
    folder = root / f"{arm}-{seed}"
    jobs = {PRETRAIN: pretrain} | {name: evaluation(protocol, name) for name in protocol.evaluate}
    return [
        Stage(
            key=result_key(arm, seed, name),
            title=f"{arm}, seed {seed}, {name}",
            name=name,
            job=job.with_settings({"seed": seed}),
            workdir=folder / name,
            log=folder / f"{name}.log",
            init=None if name == PRETRAIN else folder / PRETRAIN,
        )
        for name, job in jobs.items()
    ]


def pretraining(protocol: Protocol, arm: str) -> Job:
    """What an arm pre-trains."""
    return make_job(protocol.arms[arm], protocol.shared, f"config.arms.{arm}")


def evaluation(protocol: Protocol, name: str) -> Job:
    """What a stage of evaluation does with every trained network."""
    return make_job(
        protocol.evaluate[name], protocol.evaluate_shared.get(name, {}), f"config.evaluate.{name}"
    )


def _job(file: str, settings: Mapping[str, Any]) -> Job:
    config = load(file)
    known = [f"config.{key}" for key in flatten(to_dict(check(config)))]
    for key in settings:
        if f"config.{key}" not in known:
            raise ConfigError(f"unknown key config.{key}{nearest(f'config.{key}', known)}")
    return Job(file, dict(settings), flatten(to_dict(check(override(config, settings)))))


def _applicable(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.startswith("method.") or key in config}
