"""The front door: python -m mim_jax.main --config=configs/mapet.py[:preset] [--config.key=value ...] [--workdir=DIR]"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging

from mim_jax import pretrain
from mim_jax.analysis import job as analysis
from mim_jax.config.arguments import Parser
from mim_jax.config.check import ConfigError, check
from mim_jax.config.errors import print_error
from mim_jax.config.files import load, override
from mim_jax.config.schema import Config
from mim_jax.data import DataError
from mim_jax.methods import check_options
from mim_jax.storage import StorageError
from mim_jax.tasks import fit_tokenizer, gallery
from mim_jax.training import distributed
from mim_jax.training.checkpoints import CheckpointError
from mim_jax.training.watching.watch import Diverged

TASKS: dict[str, tuple[Callable[[Config], object], Callable[[Config, str, bool], int]]] = {
    "pretrain": (check_options, pretrain.run),
    "gallery": (check_options, gallery.run),
    "tokenizer": (fit_tokenizer.check_job, fit_tokenizer.run),
    "analyze": (analysis.check_job, analysis.run),
}
"""config.task -> (what checks its options, what runs it: (configuration, directory, whether to overwrite) -> exit code)."""

USAGE = """python -m mim_jax.main --config=configs/FILE.py[:PRESET] [--workdir=DIR] [--overwrite] [--config.KEY=VALUE ...]

A config file's first lines say what it does and which presets it has; all keys are in mim_jax/config/schema.py.
The same command goes on where a run was stopped; --overwrite starts it anew. DIR may lie in a bucket, gs://BUCKET/DIR.
Where a run has diverged, the same command with --replay=DIR/diverged-STEP.json repeats that update and says what it did to every
parameter; nothing is written."""

USAGE_ERROR = 2
DIVERGED = 3


def default_workdir(config_flag: str) -> str:
    """runs/<name of the config file>-<preset>."""
    path, _, preset = config_flag.partition(":")
    return f"runs/{Path(path).stem}-{preset or 'demo'}"


def parse(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """The configuration, checked, and the options beside it.

    Raises:
        ConfigError: one sentence.
    """
    parser = Parser("python -m mim_jax.main", USAGE)
    parser.add_argument("--config", metavar="FILE[:PRESET]")
    parser.add_argument("--workdir", metavar="DIR")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--replay", metavar="FILE")
    options, values = parser.parse_with_assignments(argv)
    if not options.config:
        raise ConfigError("no configuration was given; pass for example --config=configs/mapet.py")
    return check(override(load(options.config), values)), options


def run(argv: Sequence[str]) -> int:
    """Everything; the exit code. Mistakes of the user end in one sentence on stderr."""
    try:
        if {"--help", "-h", "-help"} & set(argv):
            print(USAGE)
            return 0
        config, options = parse(argv[1:])
        check_task, run_task = TASKS[config.task]
        check_task(config)
        workdir = default_workdir(options.config) if options.workdir is None else options.workdir
        distributed.join()
        if options.replay is not None:
            return _replay(config, workdir, options)
        return run_task(config, workdir, options.overwrite)
    except (ConfigError, DataError, CheckpointError, StorageError) as error:
        print_error(error)
        return USAGE_ERROR
    except Diverged as error:
        print_error(error)
        return DIVERGED


def _replay(config: Config, workdir: str, options: argparse.Namespace) -> int:
    """Repeats a diverged update of a run; raises ConfigError where that has no meaning."""
    if options.overwrite or config.task != "pretrain":
        raise ConfigError(
            "--replay=FILE repeats an update of a run: give its own command, without --overwrite"
        )
    return pretrain.replay(config, workdir, options.replay)


def main() -> None:
    """Entry point of python -m mim_jax.main."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    code = run(sys.argv)
    sys.stdout.flush()
    # Decoding threads and jax's own are daemons or done; a normal exit runs their clean-up.
    sys.exit(code)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    main()
