"""Reading files that anybody may have changed: regular ones of bounded size; JSON of bounded depth whose values are as expected.

    shape = record({"step": whole(0), "values": mapping(number())})
    step = read_json(path, shape)["step"]

What is wrong is an `Unreadable`, the second half of a sentence; whoever asked names the file and the remedy.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from etils import epath

from mim_jax.storage import is_bucket

LIMIT = 64 << 20
"""Bytes of a JSON file of ours: a hundred times more than any has had."""
DEEPEST = 32
"""Lists and objects inside each other."""
DIGITS = 20
"""Of a whole number: 2**64 has so many."""
_SHOWN = 60
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Unreadable(ValueError):
    """What keeps a file from being used, without its name: "it is a named pipe, not a file".

    absent: there is no such file.
    """

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent


def check_file(path: str | os.PathLike[str], limit: int | None = None) -> int:
    """The bytes of a regular file, before anything opens it: a pipe would be waited for, a device read for ever.

    Args:
        limit: bytes; None = any.
    Raises:
        Unreadable: there is none, it is of another kind, or larger.
    """
    try:
        if is_bucket(path):
            place = epath.Path(path)
            if place.is_dir():
                raise Unreadable("it is a directory, not a file")
            size = int(place.stat().length)
        else:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                kind = next((name for test, name in _KINDS if test(found.st_mode)), "something else")
                raise Unreadable(f"it is {kind}, not a file")
            size = found.st_size
    except FileNotFoundError as error:
        broken = os.path.islink(path)
        raise Unreadable(
            "it is a broken link" if broken else "there is no such file", absent=not broken
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if limit is not None and size > limit:
        raise Unreadable(f"it has {_bytes(size)}, where at most {_bytes(limit)} are expected")
    return size


def read_bytes(path: str | os.PathLike[str], limit: int = LIMIT) -> bytes:
    """A regular file of at most `limit` bytes, whole. Raises Unreadable."""
    check_file(path, limit)
    try:
        with (
            epath.Path(path).open("rb") if is_bucket(path) else open(os.open(path, _QUIETLY), "rb") as stream
        ):
            content: bytes = stream.read(limit + 1)
    except OSError as error:
        raise Unreadable(f"it cannot be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise Unreadable(f"it has more than {_bytes(limit)}")
    return content


_QUIETLY = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_text(path: str | os.PathLike[str], limit: int = LIMIT) -> str:
    """A regular file of at most `limit` bytes of UTF-8. Raises Unreadable."""
    return _text(read_bytes(path, limit))


Shape = Callable[[Any, str], Any]
"""Takes a value of JSON and what an error calls it; gives it back. Raises Unreadable."""


def read_json(path: str | os.PathLike[str], shape: Shape, limit: int = LIMIT, *, finite: bool = True) -> Any:
    """What a file of JSON says, of that shape. finite: as of `parse_json`. Raises Unreadable."""
    return parse_json(read_bytes(path, limit), shape, finite=finite)


def parse_json(content: bytes | str, shape: Shape, *, finite: bool = True) -> Any:
    """What JSON says, of that shape.

    Args:
        finite: False = NaN and Infinity are numbers, too, as Python writes them.
    Raises:
        Unreadable: it is not UTF-8, not JSON, too deep, or holds a number that is none or has too many digits, or another shape.
    """
    text = content if isinstance(content, str) else _text(content)
    try:
        value = json.loads(
            text,
            parse_int=_parse_int,
            parse_float=_parse_float if finite else float,
            parse_constant=_refuse_constant if finite else float,
        )
    except json.JSONDecodeError as error:
        raise Unreadable(
            "it is empty" if not text.strip() else f"it is not JSON (line {error.lineno})"
        ) from error
    except RecursionError as error:
        raise Unreadable(f"it has values nested more than {DEEPEST} deep") from error
    if _deeper_than(value, DEEPEST):
        raise Unreadable(f"it has values nested more than {DEEPEST} deep")
    return shape(value, "it")


def anything(value: Any, name: str) -> Any:
    """Any value."""
    return value


def whole(low: int = -(2**63), high: int = 2**63 - 1) -> Shape:
    """A whole number of low..high."""

    def check(value: Any, name: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            _refuse(value, name, "a whole number")
        if not low <= value <= high:
            _refuse(value, name, f"in {low}..{high}" if high < 2**53 else f"{low} or more")
        return value

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Shape:
    """A number of low..high. (NaN and Infinity are a matter of `parse_json`.)"""

    def check(value: Any, name: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            _refuse(value, name, "a number")
        if value < low or value > high:
            _refuse(value, name, f"in {low:g}..{high:g}" if high < math.inf else f"{low:g} or more")
        return value

    return check


def text(longest: int = 1 << 20) -> Shape:
    """A text of at most so many characters."""

    def check(value: Any, name: str) -> str:
        if not isinstance(value, str):
            _refuse(value, name, "a text")
        if len(value) > longest:
            raise Unreadable(f"{name} is a text of {len(value)} characters, more than {longest}")
        return value

    return check


def listed(shape: Shape, longest: int = 1 << 20, shortest: int = 0) -> Shape:
    """A list of so many values of a shape."""

    def check(value: Any, name: str) -> list[Any]:
        if not isinstance(value, list):
            _refuse(value, name, "a list")
        if not shortest <= len(value) <= longest:
            bounds = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
            raise Unreadable(f"{name} has {len(value)} values, not {bounds}")
        return [shape(item, _inside(name, str(place))) for place, item in enumerate(value)]

    return check


def mapping(shape: Shape = anything) -> Shape:
    """An object all of whose values have one shape."""

    def check(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            _refuse(value, name, "an object")
        return {key: shape(item, _inside(name, key)) for key, item in value.items()}

    return check


def record(
    required: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None, others: Shape = anything
) -> Shape:
    """An object with these keys; `others`: of the values of all other keys."""
    known = {**required, **(optional or {})}

    def check(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            _refuse(value, name, "an object")
        if missing := [key for key in required if key not in value]:
            raise Unreadable(f"{name} lacks {', '.join(missing)}")
        return {key: known.get(key, others)(item, _inside(name, key)) for key, item in value.items()}

    return check


def _inside(name: str, key: str) -> str:
    key = key if len(key) <= _SHOWN else f"{key[:_SHOWN]}..."
    return json.dumps(key)[1:-1] if name == "it" else f"{name}.{json.dumps(key)[1:-1]}"


def _refuse(value: Any, name: str, wanted: str) -> NoReturn:
    shown = json.dumps(value)
    raise Unreadable(f"{name} is {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}, not {wanted}")


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not UTF-8 (byte {error.start})") from error


def _parse_int(digits: str) -> int:
    if len(digits) > DIGITS:
        raise Unreadable(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Unreadable(f"it holds the number {digits[:_SHOWN]}, which is not finite")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Unreadable(f"it holds {name}, which is not a finite number")


def _deeper_than(value: Any, most: int) -> bool:
    """Without recursion: what is checked here may be deeper than Python's stack."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _bytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count >= 1 << 20 else f"{count} bytes"
