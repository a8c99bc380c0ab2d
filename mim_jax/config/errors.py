"""A mistake of the user's: one sentence, and how it is printed."""

import difflib
import sys
import unicodedata
from collections.abc import Iterable

from mim_jax.errors import UserError

SHOWN = 120
"""Characters of a value in a sentence."""
LONGEST_WORD = 400
"""Characters of a word in a sentence, which may be a path of thousands."""


class ConfigError(UserError):
    """A configuration that cannot be run; the message is one sentence for the user."""


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the closest known word, '' where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(key: str, value: str, known: Iterable[str]) -> str:
    """`value`, if it is known; else a ConfigError that lists what is and names the nearest."""
    names = list(known)
    if value not in names:
        raise ConfigError(
            f"{key} is {shown(value)}, but must be one of {', '.join(names)}{nearest(str(value), names)}"
        )
    return value


def shown(value: object) -> str:
    """A value as Python writes it, cut where it is too long for a sentence."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def one_line(text: str) -> str:
    """The text with line breaks and other control characters, and bytes that are no UTF-8, written as escapes.

    A file name may hold any of them; a sentence, a title or a log line must not be split by one.
    """
    plain = "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Zl", "Zp")
        else character
        for character in text
    )
    return plain.encode("utf-8", "backslashreplace").decode("utf-8")


def print_error(error: BaseException) -> None:
    """The sentence of an error on stderr: the one place where all programs of mim_jax end on a mistake."""
    words = (
        word if len(word) <= LONGEST_WORD else f"{word[:150]}...{word[-150:]}"
        for word in str(error).split(" ")
    )
    print(f"mim_jax: {one_line(' '.join(words))}", file=sys.stderr)
