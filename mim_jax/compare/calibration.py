"""The budget in seconds: how many steps an arm makes in the time that all arms have.

A short run measures images/s; evaluation and saving do not count as training. Keys that count epochs (a warm-up, AMT's
refreshes) are scaled so that they keep their share of the run.
"""

from pathlib import Path

from mim_jax.compare.protocol import CALIBRATION, Protocol, flatten
from mim_jax.compare.records import EPOCHS, SPEED, Record
from mim_jax.compare.stages import Job, Stage
from mim_jax.config.check import ConfigError


def calibration_key(arm: str) -> str:
    """The name of a calibration's result."""
    return f"{arm}-{CALIBRATION}"


def calibration(protocol: Protocol, arm: str, job: Job, root: Path) -> Stage:
    """The short run of an arm, in a scratch directory."""
    steps = protocol.calibration_steps
    settings = {
        "schedule.steps": steps,
        "schedule.warmup_steps": 0,
        "log.every_steps": max(1, steps // 10),
        **flatten(protocol.calibration),
    }
    return Stage(
        key=calibration_key(arm),
        title=f"{arm}, {CALIBRATION}",
        name=CALIBRATION,
        job=job.with_settings(settings),
        workdir=root / CALIBRATION / arm,
        log=root / CALIBRATION / f"{arm}.log",
    )


def steps_in(protocol: Protocol, job: Job, record: Record) -> int:
    """Updates in the seconds of the budget."""
    return max(1, round(protocol.seconds * record.values[SPEED] / job.config["data.batch_size"]))


def in_seconds(protocol: Protocol, arm: str, job: Job, record: Record) -> Job:
    """The job, as long as the budget's seconds.

    Raises:
        ConfigError: the calibration did not log what is needed.
    """
    for key in (SPEED, EPOCHS):
        if key not in record.values:
            raise ConfigError(f"{arm}: its calibration did not log {key}, so the budget has no steps")
    config, steps = job.config, steps_in(protocol, job, record)
    cooldown = config["schedule.cooldown_epochs"]
    steps_an_epoch = protocol.calibration_steps / (record.values[EPOCHS] + cooldown)
    share = steps / steps_an_epoch / (config["schedule.epochs"] + cooldown)
    scaled = {key: _scaled(config[key], share) for key in protocol.epoch_keys if config.get(key) is not None}
    return job.with_settings({"schedule.steps": steps, **scaled})


def _scaled(epochs: int | float, share: float) -> int | float:
    return max(1, round(epochs * share)) if isinstance(epochs, int) else epochs * share
