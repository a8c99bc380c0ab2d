"""The border: a ConfigDict in, the frozen tree of `schema.py` out, or one sentence that names the key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from mim_jax.config.schema import Config

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one sentence for the user."""


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the closest known word, '' where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(key: str, value: str, known: Iterable[str]) -> str:
    """`value`, if it is known; else a ConfigError that lists what is and names the nearest."""
    names = list(known)
    if value not in names:
        raise ConfigError(f"{key} is {value!r}, but must be one of {', '.join(names)}{nearest(value, names)}")
    return value


def choose_preset(preset: str | None, presets: Mapping[str, Any]) -> Any:
    """The preset of a config file; the first one is the default (no argument)."""
    name = preset or next(iter(presets))
    return presets[one_of("the preset after the colon of --config", name, presets)]


def default_config() -> ml_collections.ConfigDict:
    """The whole tree with its defaults, as what a config file edits. It is locked: a misspelt key raises at once."""
    return _to_config_dict(Config)


def to_dict(config: Any) -> Any:
    """A frozen tree (or part of one) as nested plain dicts, tuples as lists: what config.json holds."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    return list(config) if isinstance(config, tuple) else config


def check(config: Mapping[str, Any]) -> Config:
    """Turns a ConfigDict (or plain nested dict) into a `Config`: unknown keys and wrong types are refused."""
    return build(Config, config)


def build(cls: type[T], tree: Mapping[str, Any], path: str = "config") -> T:
    """Builds the dataclass `cls` from a mapping, section by section.

    Raises:
        ConfigError: naming the key, and for an unknown one the nearest valid one.
    """
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in hints:
            raise ConfigError(f"unknown key {path}.{key}{nearest(key, hints)}")
    values: dict[str, Any] = {}
    for key, value in dict(tree).items():
        hint = hints[key]
        name = f"{path}.{key}"
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping | ml_collections.ConfigDict):
                raise ConfigError(f"{name} is a section with keys of its own, not the value {value!r}")
            values[key] = build(typing.cast(type, hint), value, name)
        elif typing.get_origin(hint) is dict:
            values[key] = dict(value)
        else:
            values[key] = _typed(name, value, hint)
    return cls(**values)


def _typed(name: str, value: Any, hint: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    words = " or ".join(
        "empty" if option is types.NoneType else str(getattr(option, "__name__", option))
        for option in options
    )
    raise ConfigError(f"{name} must be {words}, got {value!r} ({type(value).__name__})")


def _to_config_dict(cls: Any) -> ml_collections.ConfigDict:
    hints = typing.get_type_hints(cls)
    out = ml_collections.ConfigDict()
    for field in dataclasses.fields(cls):
        hint, default = hints[field.name], field.default
        if dataclasses.is_dataclass(hint):
            out[field.name] = _to_config_dict(hint)
        elif typing.get_origin(hint) is dict:
            out[field.name] = ml_collections.ConfigDict()
        elif default is None:
            kind = next(option for option in typing.get_args(hint) if option is not types.NoneType)
            out[field.name] = config_dict.placeholder(typing.get_origin(kind) or kind)
        else:
            out[field.name] = default
    return out.lock()


def with_job(config: ml_collections.ConfigDict, task: str, options: type) -> None:
    """Sets the task of a configuration that trains nothing, and its section `job` to the defaults of its options."""
    with config.unlocked():
        config.task, config.job = task, _to_config_dict(options)


def with_options(config: ml_collections.ConfigDict, name: str, options: type) -> None:
    """Sets the section `method` to a method's name and the defaults of its options."""
    with config.unlocked():
        config.method = _to_config_dict(options)
        with config.method.unlocked():
            config.method.name = name
