"""python -m mim_jax.main --config=FILE[:PRESET]: runs the task of a configuration."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mim_jax.analysis import job as analysis
from mim_jax.config.arguments import Parser, command, start
from mim_jax.config.check import ConfigError, check, to_dict
from mim_jax.config.errors import print_error
from mim_jax.config.files import load, override
from mim_jax.config.schema import Config
from mim_jax.errors import ExitCode
from mim_jax.methods import check_options
from mim_jax.tasks import fit_tokenizer, gallery, train
from mim_jax.training import distributed
from mim_jax.training.cluster import add_cluster_options, cluster_of
from mim_jax.training.monitoring.monitor import Diverged

TASKS: dict[str, tuple[Callable[[Config], object], Callable[[Config, str, bool], int]]] = {
    "train": (check_options, train.run),
    "gallery": (check_options, gallery.run),
    "tokenizer": (fit_tokenizer.check_job, fit_tokenizer.run),
    "analyze": (analysis.check_job, analysis.run),
}
"""config.task -> (what checks its options, what runs it: (configuration, directory, whether to overwrite) -> exit code)."""

DESCRIPTION = """Runs what a configuration describes: pre-training, fine-tuning, probing, a tokenizer, an analysis, a gallery.

    python -m mim_jax.main --config=configs/mapet.py
    python -m mim_jax.main --config=configs/mae.py:imagenet --config.optim.lr=1e-3 --workdir=gs://BUCKET/mae

The first lines of a configuration file say what it does and which presets it has; all keys are in mim_jax/config/schema.py, and
--config.KEY=VALUE sets one. The same command resumes a run that was stopped.

Exit codes: 0 done, 2 a mistake of the user's, 3 the run has diverged, 75 asked to stop (the same command resumes)."""


def default_workdir(config_flag: str) -> str:
    """runs/<name of the config file>-<preset>."""
    path, _, preset = config_flag.partition(":")
    return f"runs/{Path(path).stem}-{preset or 'demo'}"


def parse(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """The configuration, checked, and the options beside it.

    Raises:
        ConfigError: one sentence.
    """
    parser = Parser("python -m mim_jax.main", DESCRIPTION)
    parser.add_config()
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="where all output goes, on a disk or in a bucket (gs://BUCKET/DIR); runs/NAME-PRESET if not given",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="starts anew where DIR holds a run; without it the run is resumed",
    )
    parser.add_argument(
        "--replay",
        metavar="FILE",
        help="DIR/diverged-STEP.json of a run that has diverged: repeats that update and prints what it did to every parameter;"
        " nothing is written",
    )
    add_cluster_options(parser)
    options, values = parser.parse_with_assignments(argv)
    return check(override(load(options.config), values)), options


@command
def run(argv: Sequence[str]) -> int:
    """Everything; the exit code. Mistakes of the user end in one sentence on stderr."""
    config, options = parse(argv)
    check_task, run_task = TASKS[config.task]
    check_task(config)
    workdir = default_workdir(options.config) if options.workdir is None else options.workdir
    settings = {"config": to_dict(config), "--workdir": workdir, "--overwrite": options.overwrite}
    with distributed.joined(cluster_of(options), settings, options.start_timeout) as leave:
        try:
            if options.replay is not None:
                return leave(_replay(config, workdir, options))
            return leave(run_task(config, workdir, options.overwrite))
        except Diverged as error:
            print_error(error)
            return leave(ExitCode.DIVERGED)


def _replay(config: Config, workdir: str, options: argparse.Namespace) -> int:
    """Repeats a diverged update of a run; raises ConfigError where that has no meaning."""
    if options.overwrite or config.task != "train":
        raise ConfigError(
            "--replay=FILE repeats an update of a run: give its own command, without --overwrite"
        )
    return train.replay(config, workdir, options.replay)


if __name__ == "__main__":
    sys.exit(start(run, sys.argv[1:]))
