"""The border: a ConfigDict in, the frozen tree of `schema.py` out, or one sentence that names the key."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from mim_jax.config.errors import ConfigError, nearest, one_of
from mim_jax.config.kinds import base, conform
from mim_jax.config.schema import Config

__all__ = [
    "ConfigError",
    "build",
    "check",
    "choose_preset",
    "default_config",
    "nearest",
    "one_of",
    "to_dict",
    "with_job",
    "with_options",
]

T = TypeVar("T")


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
    """Builds the dataclass `cls` from a mapping, section by section; every value is of its kind and within its range.

    Raises:
        ConfigError: naming the key, and for an unknown one the nearest valid one.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    if not isinstance(tree, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"{path} is a section with keys of its own, not the value {tree!r}")
    values: dict[str, Any] = {}
    for key in list(tree):
        name = f"{path}.{key}"
        if key not in hints:
            raise ConfigError(f"unknown key {name}{nearest(str(key), hints)}")
        value, hint = tree[key], hints[key]
        if dataclasses.is_dataclass(hint):
            values[key] = build(typing.cast(type, hint), value, name)
        elif base(hint) is dict:
            values[key] = dict(conform(name, _plain_dict(value), dict))
        else:
            values[key] = conform(name, value, hint)
    return cls(**values)


def _plain_dict(value: Any) -> Any:
    return dict(value) if isinstance(value, ml_collections.ConfigDict) else value


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
            kinds = {base(option) for option in typing.get_args(hint)} - {type(None)}
            # A ConfigDict knows one type for a key; where there are two (an int or a pair), it is left to `build`.
            out[field.name] = config_dict.placeholder(kinds.pop()) if len(kinds) == 1 else None
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


def differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    path: str = "config",
    ignored: tuple[str, ...] = KEYS_THAT_MAY_CHANGE,
) -> Iterator[str]:
    """Sentences 'key: old -> new' for every leaf that differs, but for those whose names begin with one of `ignored`."""
    for key in sorted({*old, *new}):
        name = f"{path}.{key}" if path else key
        if name.startswith(ignored):
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, name, ignored)
        elif before != after:
            yield f"{name}: {before!r} -> {after!r}"
