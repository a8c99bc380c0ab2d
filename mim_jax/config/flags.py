"""What the flag libraries raise, as one sentence for the user."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mim_jax.config.check import nearest
from mim_jax.config.schema import Config


def explain(error: Exception, argv: Sequence[str]) -> str:
    """One sentence for an error of absl's or ml_collections' parsing of `argv`."""
    text = str(error)
    if isinstance(error, AttributeError | KeyError):
        return _unknown_key(text, argv)
    if "Traceback" in text:  # an error inside the config file, wrapped with its whole traceback
        last = text.strip().splitlines()[-1]
        return re.sub(r"^[\w.]*(Error|Exception): ", "", last)
    if match := re.match(r"flag --(config[\w.]*)=(.*?): (.*)", text, flags=re.DOTALL):
        key, value, reason = match.groups()
        return f"{key} cannot be {value!r}: {_plain(reason)}"
    if match := re.match(r"Unknown command line flag '(.*?)'", text):
        return f"unknown option --{match[1]}{nearest(match[1], ('workdir', 'overwrite', 'config'))}"
    return " ".join(text.split())


def nearest_config_file(path: str) -> str:
    """'; did you mean X?' for the closest file name beside a missing config file."""
    folder = Path(path).parent
    files = [str(file) for file in folder.glob("*.py")] if folder.is_dir() else []
    close = difflib.get_close_matches(path, files, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def known_keys(cls: Any = Config, prefix: str = "config") -> Iterator[str]:
    """Full names of all keys of the tree, sections included."""
    for name, hint in typing.get_type_hints(cls).items():
        yield f"{prefix}.{name}"
        if dataclasses.is_dataclass(hint):
            yield from known_keys(hint, f"{prefix}.{name}")


def _unknown_key(text: str, argv: Sequence[str]) -> str:
    """ml_collections says which part is wrong, but not of which key."""
    bad = re.search(r"(\w+)", text)
    given = [re.split(r"[=]", a.lstrip("-"))[0] for a in argv if a.startswith("--config.")]
    key = next((k for k in given if bad and bad[1] in k.split(".")), bad[1] if bad else "")
    meant = re.search(r'Did you mean "(.*?)"', text)
    if meant and bad:
        return f"unknown key {key}; did you mean {key.replace(bad[1], meant[1], 1)}?"
    return f"unknown key {key}{nearest(key, known_keys())}"


def _plain(reason: str) -> str:
    for pattern, words in (
        (r"invalid literal for int", "it must be a whole number"),
        (r"could not convert string to float", "it must be a number"),
        (r"Non-boolean", "it must be True or False"),
        (r"Failed to parse .* as a ConfigDict", "it is a section with keys of its own"),
    ):
        if re.search(pattern, reason):
            return words
    return " ".join(reason.split())
