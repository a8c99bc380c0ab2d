"""What lies in a run's directory besides metrics and checkpoints: the configuration, and what it ran with."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from mim_jax.config.check import ConfigError, check, to_dict
from mim_jax.config.schema import Config
from mim_jax.reading import Unreadable, mapping, read_json

HARMLESS = (
    "config.mesh",
    "config.log",
    "config.checkpoint",
    "config.eval",
    "config.data.threads",
    "config.data.on_bad_image",
    "config.data.prefetch",
)
"""Keys that cannot change what is learnt: a run may be resumed with others."""

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
        if name.startswith(HARMLESS):
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, name)
        elif before != after:
            yield f"{name}: {before!r} -> {after!r}"


def claim(workdir: Path, config: Config) -> None:
    """Keeps config.json and versions.json in a new directory; refuses one that belongs to another configuration.

    Raises:
        ConfigError: naming the keys that differ, or a directory that cannot be written.
    """
    path, now = workdir / "config.json", json.loads(json.dumps(to_dict(config)))
    saved = workdir / "checkpoints"
    if path.exists() and saved.is_dir() and any(saved.iterdir()):  # else no step was kept: nothing to protect
        changed = list(
            differences(to_dict(read_config(workdir)), now)
        )  # keys of later versions have their defaults
        if changed:
            raise ConfigError(
                f"{workdir} holds a run with another configuration ({'; '.join(changed)}): give --workdir another directory,"
                " or --overwrite to start it anew"
            )
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(path, now)
            write_json(workdir / "versions.json", versions())
        except OSError as error:
            reason = "it is a file, not a directory" if workdir.is_file() else error.strerror
            raise ConfigError(f"--workdir={workdir} cannot be written: {reason}") from error


def read_config(workdir: Path) -> Config:
    """The resolved configuration of a run, from its directory alone.

    Raises:
        ConfigError: there is no run, or its config.json cannot be read.
    """
    path = workdir / "config.json"
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


def versions() -> dict[str, str]:
    """Versions of what computes: Python, packages, devices."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    found["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    found["processes"] = str(jax.process_count())
    return found


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all, also when killed half-way."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)
