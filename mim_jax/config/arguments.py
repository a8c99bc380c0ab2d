"""The command line of every verb: its own options, and --config.KEY=VALUE."""

import argparse
import difflib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, ParamSpec

from absl import logging

from mim_jax.config.errors import ConfigError, print_error
from mim_jax.errors import ExitCode, UserError

CONFIG_PREFIX = "--config."
P = ParamSpec("P")


class HelpPrinted(Exception):
    """--help was asked for, and is printed."""


def command(run: Callable[P, int]) -> Callable[P, int]:
    """Decorates the function of a verb: a user's mistake ends in its sentence on stderr and exit code 2."""

    @functools.wraps(run)
    def run_or_explain(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return run(*args, **kwargs)
        except HelpPrinted:
            return 0
        except UserError as error:
            print_error(error)
            return ExitCode.USAGE_ERROR

    return run_or_explain


def start(run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs a verb as a program: quiet libraries, and all that it printed is written before its exit code is returned."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    code = run(argv)
    sys.stdout.flush()
    return code


class Parser(argparse.ArgumentParser):
    """argparse with --help in the style of this project's documentation; a mistake is a ConfigError, one sentence.

    command: how it is called, "python -m mim_jax.VERB". description: the text of --help above the options.
    """

    def __init__(self, command: str, description: str | None) -> None:
        super().__init__(
            command,
            description=description,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._takes_config = False

    def add_config(self) -> None:
        """Adds --config=FILE[:PRESET]; for `parse_with_assignments`."""
        self.add_argument(
            "--config",
            metavar="FILE[:PRESET]",
            help="a configuration, and which of its presets; the first lines of the file say which there are. One of ours"
            " also by its name alone: --config=mapet:imagenet",
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options of a verb without a configuration. Raises ConfigError."""
        options, unknown = self._parse(argv)
        if unknown:
            raise self._unknown(unknown[0])
        return options

    def parse_with_assignments(self, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
        """The verb's own options, and what --config.KEY=VALUE (or --config.KEY VALUE) sets: "KEY" -> "VALUE".

        Raises:
            ConfigError: an argument that is neither, or no --config.
        """
        self._takes_config = True
        options, others = self._parse(argv)
        values: dict[str, str] = {}
        remaining = iter(others)
        for argument in remaining:
            name, equals, value = argument.partition("=")
            if not name.startswith(CONFIG_PREFIX):
                raise self._unknown(argument)
            if not equals:
                value = next(remaining, CONFIG_PREFIX)
                if value.startswith(CONFIG_PREFIX):
                    raise ConfigError(f"{name} has no value: options are written --config.key=value")
            values[name.removeprefix(CONFIG_PREFIX)] = value
        if not options.config:
            raise ConfigError("no configuration was given; pass for example --config=configs/mapet.py")
        return options, values

    def _parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        # Last, so that it is the last line of the help; absl's programs know -help, too.
        if "-h" not in self._option_string_actions:
            self.add_argument("-h", "-help", "--help", action="help", help="prints this text")
        # Before argparse asks for a required option, which may be there, but misspelt.
        previous = ""
        for argument in argv:
            name = argument.partition("=")[0]
            is_value = previous.startswith(CONFIG_PREFIX) and "=" not in previous
            known = name in self._option_string_actions or (
                self._takes_config and name.startswith(CONFIG_PREFIX)
            )
            if name.startswith("--") and not known and not is_value:
                raise self._unknown(argument)
            previous = argument
        return self.parse_known_args(argv)

    def _unknown(self, argument: str) -> ConfigError:
        name = argument.partition("=")[0]
        if not name.startswith("-"):
            return ConfigError(f"unexpected argument {argument!r}: {self._form()}")
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        return ConfigError(f"unknown option {argument}{f'; did you mean {close[0]}?' if close else ''}")

    def _form(self) -> str:
        return "options are written --config.key=value" if self._takes_config else f"usage: {self._usage()}"

    def _usage(self) -> str:
        words = [self.prog]
        for action in self._actions:
            if action.dest != "help":
                word = _form_of(action)
                words.append(word if action.required or action.dest == "config" else f"[{word}]")
        return " ".join([*words, "[--config.KEY=VALUE ...]"] if self._takes_config else words)

    def format_help(self) -> str:
        self.usage = self._usage().replace("%", "%%")
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (usage: {self._usage()})")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpPrinted


def _form_of(action: argparse.Action) -> str:
    """'--batch_size=N', '--overwrite', 'IN'."""
    names = action.option_strings
    metavar = str(action.metavar or action.dest.upper())
    if not names:
        return metavar
    return names[-1] if action.nargs == 0 else f"{names[-1]}={metavar}"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return _form_of(action)


def positive(text: str) -> int:
    """For `add_argument(type=)`: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)
