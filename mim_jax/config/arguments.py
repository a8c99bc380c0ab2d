"""The command line of every program: its own options, and --config.key=value."""

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from mim_jax.config.errors import ConfigError

PREFIX = "--config."


class Parser(argparse.ArgumentParser):
    """A mistake is a ConfigError, one sentence."""

    def __init__(self, command: str, description: str | None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(command, description=description, formatter_class=form, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def parse_with_assignments(self, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
        """The program's own options, and what --config.key=value (or --config.key value) sets: "key" -> value.

        Raises:
            ConfigError: an argument that is neither.
        """
        options, others = self.parse_known_args(argv)
        known = [option for action in self._actions for option in action.option_strings]
        values: dict[str, str] = {}
        rest = iter(others)
        for argument in rest:
            name, equals, value = argument.partition("=")
            if not name.startswith(PREFIX):
                if name.startswith("-"):
                    close = difflib.get_close_matches(name, known, n=1)
                    raise ConfigError(
                        f"unknown option {argument}{f'; did you mean {close[0]}?' if close else ''}"
                    )
                raise ConfigError(f"unexpected argument {argument!r}: options are written --config.key=value")
            if not equals:
                value = next(rest, PREFIX)
                if value.startswith(PREFIX):
                    raise ConfigError(f"{name} has no value: options are written --config.key=value")
            values[name.removeprefix(PREFIX)] = value
        return options, values
