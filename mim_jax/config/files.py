"""Configurations by name: FILE[:PRESET][,key=value...], and what a command line sets in them."""

import ast
import difflib
import inspect
import re
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from mim_jax.config.errors import ConfigError, nearest, shown

SHIPPED = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
"""Where the configurations that come with mim_jax lie: in an installed package, in a clone."""

LONGEST_NAME = 300
"""Characters of a path in a sentence."""

BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def load(spec: str) -> ml_collections.ConfigDict:
    """The ConfigDict of "FILE[:PRESET][,key=value...]", e.g. "configs/mapet.py:imagenet,model.variant=s".

    Raises:
        ConfigError: for a missing file, an unknown preset or key, a wrong kind of value.
    """
    name, *pairs = spec.split(",")
    path, _, preset = name.partition(":")
    config = _made(find(path), preset)
    return override(config, dict(pair.partition("=")[::2] for pair in pairs))


def find(name: str) -> Path:
    """The configuration file of that name: a path; or, from anywhere, one of ours as NAME or configs/NAME.py.

    Raises:
        ConfigError: there is none.
    """
    path, own = Path(name), name.removeprefix("configs/").removesuffix(".py")
    try:
        if path.is_file():
            return path
        shipped = [folder / f"{own}.py" for folder in SHIPPED if own and Path(own).name == own]
        there = next((file for file in shipped if file.is_file()), None)
    except OSError as error:
        raise ConfigError(
            f"the configuration file {_short(name)} cannot be read: {error.strerror}"
        ) from error
    if there is not None:
        return there
    if path.is_dir():
        raise ConfigError(f"the configuration {name} is a directory: name a .py file in it")
    raise ConfigError(f"the configuration file {_short(name)} does not exist{_nearest_file(path)}")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


def _nearest_file(path: Path) -> str:
    """'; did you mean X?' for the closest file name beside a missing config file, or of ours."""
    files = [str(file) for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    ours = sorted({file.stem for folder in SHIPPED if folder.is_dir() for file in folder.glob("*.py")})
    close = difflib.get_close_matches(
        str(path), [*files, *(f"configs/{name}.py" for name in ours), *ours], n=1
    )
    return f"; did you mean {close[0]}?" if close else f"; ours are {', '.join(ours)}"


def _made(path: Path, preset: str) -> ml_collections.ConfigDict:
    """What `get_config` of a file returns. Whatever is wrong with the file is a ConfigError that names file and line."""
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if not callable(get_config):
            raise ConfigError(f"{path} is no configuration: it defines no function get_config")
        config = get_config(*_preset(path, get_config, preset))
        if not isinstance(config, ml_collections.ConfigDict):
            kind = "nothing" if config is None else type(config).__name__
            raise ConfigError(
                f"get_config of {path} returns {kind}, but must return an ml_collections.ConfigDict"
            )
        list(known_keys(config))  # keys of several kinds cannot be sorted, and fail here
    except ConfigError:
        raise
    except SyntaxError as error:
        line = f", line {error.lineno}," if error.lineno else ""
        raise ConfigError(f"{path}{line} is no Python: {error.msg}") from error
    except (Exception, SystemExit) as error:  # a file of the user's, which may do anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = f", line {lines[-1]}" if lines else ""
        text = "" if isinstance(error, RecursionError) else " ".join(str(error).split())
        text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
        raise ConfigError(
            f"{path}{line}, raised {type(error).__name__}{f': {text}' if text else ''}"
        ) from error
    return config


def _preset(path: Path, get_config: Callable[..., Any], preset: str) -> list[str]:
    """The arguments of get_config: the preset, if one is given."""
    arguments = [preset] if preset else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        wrong = f"takes no preset, but {preset} was given" if preset else "needs a preset: FILE:PRESET"
        raise ConfigError(f"get_config of {path} {wrong}") from error
    return arguments


def override(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Sets "a.b" -> value in place; text is read as the kind of value that the key has.

    Raises:
        ConfigError: an unknown key, a section given a value, text that is no such value.
    """
    for key, value in values.items():
        *sections, last = key.split(".")
        node = config
        for number, section in enumerate(sections):
            if section not in node:
                _refuse_unknown(config, node, key)
                node[section] = ml_collections.ConfigDict(sort_keys=False)
            node = node[section]
            if not isinstance(node, ml_collections.ConfigDict):
                inner, below = ".".join(sections[: number + 1]), key.split(".")[number + 1]
                raise ConfigError(f"config.{inner} is a value, not a section: it has no key {below!r}")
        if last not in node:
            _refuse_unknown(config, node, key)
            node[last] = _literal(value) if isinstance(value, str) else value
            continue
        if isinstance(node.get(last), ml_collections.ConfigDict):
            raise ConfigError(f"config.{key} is a section with keys of its own, not the value {shown(value)}")
        if isinstance(value, str):
            value = _of_kind(f"config.{key}", value, node.get_type(last))
        with node.ignore_type():
            node[last] = value
    return config


def _refuse_unknown(config: ml_collections.ConfigDict, node: ml_collections.ConfigDict, key: str) -> None:
    """A section that is locked has all its keys; the others take any."""
    if node.is_locked:
        known = [f"config.{name}" for name in known_keys(config)]
        raise ConfigError(f"unknown key config.{key}{nearest(f'config.{key}', known)}")


def known_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Full names of all keys of a configuration, sections included."""
    for key in config:
        yield f"{prefix}{key}"
        if isinstance(config[key], ml_collections.ConfigDict):
            yield from known_keys(config[key], f"{prefix}{key}.")


def _of_kind(name: str, text: str, kind: type) -> Any:
    """Text as a value of that kind, or a ConfigError that says what it must be. None empties a key."""
    if text == "None" or kind is str:
        return None if text == "None" else text
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ConfigError(f"{name} must be True or False, got {shown(text)}")
        return BOOLEANS[text.lower()]
    if kind is float:
        try:
            return float(text)
        except ValueError as error:
            raise ConfigError(f"{name} must be a number, got {shown(text)}") from error
    value = _literal(text)
    if kind is type(None):
        return value
    if kind is tuple and not isinstance(value, tuple | list):
        value = (value,)
    if isinstance(value, str) or (
        isinstance(value, tuple | list) and any(isinstance(part, str) for part in value)
    ):
        wanted = "a whole number" if kind is int else "values such as (1, 2)"
        raise ConfigError(f"{name} must be {wanted}, got {shown(text)}")
    return value


def _literal(text: str) -> Any:
    """The Python literal that the text is, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
