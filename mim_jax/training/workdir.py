"""config.json and versions.json of a run's directory: its configuration, and what it ran with."""

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from mim_jax.config.check import ConfigError, check, to_dict
from mim_jax.config.schema import Config
from mim_jax.reading import Unreadable, mapping, read_json

CONFIG, VERSIONS = "config.json", "versions.json"

KEYS_THAT_MAY_CHANGE = (
    "config.mesh",
    "config.log",
    "config.checkpoint",
    "config.eval",
    "config.data.threads",
    "config.data.on_bad_image",
    "config.data.prefetch",
)
"""Keys that cannot change what is learnt: a run may be resumed with other values."""

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "ml-collections",
    "scikit-learn",
    "pillow",
)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "config") -> Iterator[str]:
    """Sentences 'key: old -> new' for every leaf that differs and could change the result."""
    for key in sorted({*old, *new}):
        name = f"{path}.{key}"
        if name.startswith(KEYS_THAT_MAY_CHANGE):
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, name)
        elif before != after:
            yield f"{name}: {before!r} -> {after!r}"


def read_config(workdir: epath.Path) -> Config:
    """The resolved configuration of a run, from its directory alone.

    Raises:
        ConfigError: there is no run, or its config.json cannot be read.
    """
    path = workdir / CONFIG
    try:
        tree = read_json(path, mapping())
    except Unreadable as error:
        if error.absent:
            raise ConfigError(f"{workdir} holds no run of ours: there is no {path}") from error
        raise ConfigError(f"{path} is damaged ({error}): restore it, or train anew") from error
    try:
        return check(tree)
    except ConfigError as error:
        raise ConfigError(f"{path} is no configuration of ours: {error}") from error


def refuse_changed_config(workdir: epath.Path, trained_with: Mapping[str, Any]) -> None:
    """Raises ConfigError where config.json is not what the checkpoint says it was trained with."""
    changed = list(
        differences(to_dict(check_trained_config(workdir, trained_with)), to_dict(read_config(workdir)))
    )
    if changed:
        raise ConfigError(
            f"{workdir / CONFIG} was changed after the training ({'; '.join(changed)}): put it back as it was"
        )


def check_trained_config(workdir: epath.Path, trained_with: Mapping[str, Any]) -> Config:
    """The configuration that a checkpoint says it was trained with. Raises ConfigError where it is none."""
    try:
        return check(trained_with)
    except ConfigError as error:
        raise ConfigError(
            f"the checkpoints in {workdir} were trained with no configuration of ours: {error}"
        ) from error


def versions() -> dict[str, str]:
    """Versions of what computes: Python, packages, devices."""
    result = {"python": platform.python_version()}
    for package in PACKAGES:
        result[package] = importlib.metadata.version(package)
    result["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    result["processes"] = str(jax.process_count())
    return result
