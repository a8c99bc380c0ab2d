"""Weights & Biases, an option: imported only where config.log.wandb names a project."""

import importlib
import os
import re
import secrets
from collections.abc import Mapping
from typing import Any

from etils.epath import Path

from mim_jax.config.check import ConfigError, to_dict
from mim_jax.config.schema import Config
from mim_jax.reading import Unreadable, read_json, record, text
from mim_jax.storage import is_bucket, write_json
from mim_jax.training.watching.log import UNIX_TIME


def import_wandb(config: Config) -> Any:
    """The module; None where the configuration does not ask for it. ConfigError where it is not installed."""
    if not config.log.wandb:
        return None
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            f"config.log.wandb={config.log.wandb} needs the package wandb, which cannot be imported here"
            f" ({error}): pip install wandb, or leave config.log.wandb empty"
        ) from error


def run_id(workdir: Path) -> str:
    """The id of this run at W&B, made once and kept in the work directory: a resumed run is the same run there."""
    path = workdir / "wandb.json"
    if not os.path.lexists(path):
        write_json(path, {"id": secrets.token_hex(4)})
    try:
        found = str(read_json(path, record({"id": text(128)}))["id"])
    except Unreadable as error:
        raise ConfigError(
            f"{path} is damaged ({error}): restore it, or remove it to start another run at W&B"
        ) from error
    if not re.fullmatch(r"[\w-]+", found):
        raise ConfigError(
            f"{path} is damaged (the id {found!r} is not of letters and digits): restore it, or remove it"
        )
    return found


class WandbSink:
    """Passes metrics on to W&B. What it has already had before a kill is the same now, and is not sent twice."""

    def __init__(self, config: Config, workdir: Path) -> None:
        wandb = import_wandb(config)
        try:
            self._run = wandb.init(
                project=config.log.wandb,
                id=run_id(workdir),
                resume="allow",
                name=workdir.name,
                dir=None if is_bucket(workdir) else str(workdir),
                config=to_dict(config),
                allow_val_change=True,  # keys that cannot change the result may differ in a resumed run
            )
        except Exception as error:  # no account, no network: whatever it is, it is W&B's own
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"config.log.wandb={config.log.wandb}: W&B did not start ({reason}); WANDB_MODE=offline logs without"
                " an account"
            ) from error
        self._from = int(self._run.step)  # W&B refuses steps before its newest

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._from:
            self._run.log({key: value for key, value in values.items() if key != UNIX_TIME}, step=step)

    def close(self) -> None:
        self._run.finish()
