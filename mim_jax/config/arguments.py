"""The command line of programs besides main: their own options, and --config.key=value."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from mim_jax.config.check import ConfigError


class Parser(argparse.ArgumentParser):
    """A mistake is a ConfigError, one sentence."""

    def __init__(self, command: str, description: str | None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(command, description=description, formatter_class=form, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def assignments(arguments: Sequence[str]) -> dict[str, str]:
    """What the arguments of a command, each --config.key=value, set: "key" -> value.

    Raises:
        ConfigError: an argument that is none.
    """
    values: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise ConfigError(f"unexpected argument {argument!r}: options are written --config.key=value")
        values[key] = value
    return values
