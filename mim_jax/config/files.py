"""Configurations by name, for programs: FILE[:PRESET][,key=value...]; the command line has ml_collections' flags."""

import ast
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from mim_jax.config.check import ConfigError
from mim_jax.config.flags import nearest_config_file


def load(spec: str) -> ml_collections.ConfigDict:
    """The ConfigDict of "FILE[:PRESET][,key=value...]", e.g. "configs/mapet.py:imagenet,model.variant=s".

    Raises:
        ConfigError: for a missing file, an unknown preset or key, a wrong type.
    """
    name, *pairs = spec.split(",")
    path, _, preset = name.partition(":")
    if not Path(path).is_file():
        raise ConfigError(f"the configuration file {path} does not exist{nearest_config_file(path)}")
    config = runpy.run_path(path)["get_config"](*([preset] if preset else []))
    return override(config, dict(pair.partition("=")[::2] for pair in pairs))


def override(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Sets "a.b" -> value in place (a string is read as a Python literal where it is one)."""
    for key, value in values.items():
        try:
            literal = ast.literal_eval(value) if isinstance(value, str) else value
        except (ValueError, SyntaxError):
            literal = value
        try:
            config.update_from_flattened_dict({key: literal})
        except (KeyError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"config.{key}={value} cannot be set: {' '.join(str(error).split())}"
            ) from error
    return config
