"""What a key may hold: its kind and its range, written beside it in the schema as typing.Annotated, and checked here."""

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from mim_jax.config.errors import ConfigError, one_of, shown

MOST = 2**31 - 1
"""No count is larger: steps, indices and sizes are int32 on the devices."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless they are said to be `above` or `below`."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def check(self, name: str, value: float) -> None:
        """Raises ConfigError."""
        if value < self.low or (self.above and value == self.low):
            raise ConfigError(
                f"{name}={shown(value)} must be {'above' if self.above else 'at least'} {self.low:.10g}"
            )
        if value > self.high or (self.below and value == self.high):
            raise ConfigError(
                f"{name}={shown(value)} must be {'below' if self.below else 'at most'} {self.high:.10g}"
            )


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some words."""

    words: tuple[str, ...]

    def check(self, name: str, value: str) -> None:
        """Raises ConfigError."""
        one_of(name, value, self.words)


@dataclasses.dataclass(frozen=True)
class Characters:
    """Free text, such as a path; `least`: of how many characters."""

    least: int = 0

    def check(self, name: str, value: str) -> None:
        """Raises ConfigError."""
        if "\0" in value:
            raise ConfigError(f"{name}={shown(value)} holds a null character, which no path or name can")
        if len(value.strip()) < self.least:
            raise ConfigError(f"{name} is empty: give it a value, or leave it out")


@dataclasses.dataclass(frozen=True)
class Values:
    """A tuple of at least so many values, all different if `different`, each not below the one before if `rising`."""

    least: int = 1
    different: bool = False
    rising: bool = False

    def check(self, name: str, value: tuple[Any, ...]) -> None:
        """Raises ConfigError."""
        if len(value) < self.least:
            raise ConfigError(
                f"{name}={shown(value)} must hold at least {self.least} value{'s' * (self.least > 1)}"
            )
        if self.different and len(set(value)) < len(value):
            raise ConfigError(f"{name}={shown(value)} must hold different values")
        if self.rising and any(later < earlier for earlier, later in itertools.pairwise(value)):
            raise ConfigError(f"{name}={shown(value)} must rise: the smaller value comes first")


@dataclasses.dataclass(frozen=True)
class Free:
    """Any value, such as the entries of a section with keys of the user's own; what is in it is checked where it is used."""

    def check(self, name: str, value: Any) -> None:
        """Nothing to refuse."""


Text = Annotated[str, Characters()]
Name = Annotated[str, Characters(1)]
Count = Annotated[int, Range(1, MOST)]
CountOrZero = Annotated[int, Range(0, MOST)]
Side = Annotated[int, Range(1, 2**20)]
"""Pixels or tokens."""
Width = Annotated[int, Range(1, 2**16)]
Depth = Annotated[int, Range(1, 256)]
Heads = Annotated[int, Range(1, 1024)]
Vocabulary = Annotated[int, Range(2, 2**24)]
Block = Annotated[int, Range(-1, 255)]
"""Number of a block; -1 = after the last."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""jax.random.key keeps 32 bits: larger seeds would repeat these."""
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]
ShareAboveZero = Annotated[float, Range(0, 1, above=True)]
Rate = Annotated[float, Range(0, 1000)]
Epochs = Annotated[float, Range(0, 1e6)]


def words(*known: str) -> OneOf:
    """`Annotated[str, words("a", "b")]`: one of these."""
    return OneOf(known)


def conform(name: str, value: Any, hint: Any) -> Any:
    """`value` as the kind `hint` has it: lists as tuples, whole numbers as floats where a float is meant.

    Args:
        name: of the key, for the sentence.
        hint: a type, a union, or typing.Annotated of them with what checks the range.
    Raises:
        ConfigError: of another kind, no finite number, or out of range.
    """
    options = _options(hint)
    fitting = [option for option in options if _is_kind(value, option)]
    if not fitting:
        wanted = " or ".join(_describe(option) for option in options)
        got = "nothing" if value is None else f"{shown(value)} ({type(value).__name__})"
        raise ConfigError(f"{name} must be {wanted}, got {got}")
    hint = fitting[0]
    checks: list[Any] = []
    if typing.get_origin(hint) is Annotated:
        hint, *checks = typing.get_args(hint)
    value = _plain(name, value, hint)
    for check in checks:
        check.check(name, value)
    return value


def _plain(name: str, value: Any, hint: Any) -> Any:
    """A value of the right kind, each of its parts checked."""
    if hint is float:
        try:
            value = float(value)
        except OverflowError as error:
            raise ConfigError(f"{name} is too large a number") from error
        if not math.isfinite(value):
            raise ConfigError(f"{name}={shown(value)} must be a finite number")
    elif typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        each = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(each) != len(value):
            raise ConfigError(f"{name}={shown(tuple(value))} must hold {len(each)} values, not {len(value)}")
        value = tuple(conform(name, part, kind) for part, kind in zip(value, each, strict=True))
    elif hint is tuple:
        value = tuple(value)
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def base(hint: Any) -> Any:
    """The plain type of a hint: without its ranges, and tuple for tuple[...]."""
    if typing.get_origin(hint) is Annotated:
        return base(typing.get_args(hint)[0])
    return typing.get_origin(hint) or hint


def _is_kind(value: Any, option: Any) -> bool:
    kind = base(option)
    if kind is Any:
        return True
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is dict:
        return isinstance(value, Mapping)
    wider = {float: (int, float), tuple: (list, tuple)}
    return isinstance(value, wider.get(kind, kind))


def _describe(option: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "text",
        tuple: "a list of values such as (1, 2)",
        dict: "a section with keys of its own",
        types.NoneType: "empty",
    }
    kind = base(option)
    return names.get(kind, str(kind))
