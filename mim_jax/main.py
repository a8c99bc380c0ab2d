"""The front door: python -m mim_jax.main --config=configs/mapet.py[:preset] [--config.key=value ...] [--workdir=DIR]"""

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from mim_jax import fit_tokenizer, gallery, pretrain
from mim_jax.analysis import job as analysis
from mim_jax.config.check import ConfigError, check, one_of
from mim_jax.config.flags import explain, nearest_config_file
from mim_jax.config.schema import Config
from mim_jax.data import DataError
from mim_jax.methods import check_options
from mim_jax.training import distributed
from mim_jax.training.checkpoints import CheckpointError
from mim_jax.training.watching.watch import Diverged

TASKS: dict[str, tuple[Callable[[Config], object], Callable[[Config, Path], int]]] = {
    "pretrain": (check_options, pretrain.run),
    "gallery": (check_options, gallery.run),
    "tokenizer": (fit_tokenizer.check_job, fit_tokenizer.run),
    "analyze": (analysis.check_job, analysis.run),
}
"""config.task -> (what checks its options, what runs it: (configuration, directory) -> exit code)."""

USAGE = """python -m mim_jax.main --config=configs/FILE.py[:PRESET] [--workdir=DIR] [--overwrite] [--config.KEY=VALUE ...]

A config file's first lines say what it does and which presets it has; all keys are in mim_jax/config/schema.py.
The same command goes on where a run was stopped; --overwrite starts it anew."""

USAGE_ERROR = 2
DIVERGED = 3

config_flags.DEFINE_config_file(
    "config", None, "A file under configs/, optionally with a preset: FILE[:PRESET]."
)
flags.DEFINE_string("workdir", None, "Directory of the run; by default runs/<config>-<preset>.")
flags.DEFINE_bool("overwrite", False, "Delete what --workdir holds and start anew.")


def default_workdir(config_flag: str) -> Path:
    """runs/<name of the config file>-<preset>."""
    path, _, preset = config_flag.partition(":")
    return Path("runs") / f"{Path(path).stem}-{preset or 'demo'}"


def _config_flag(argv: Sequence[str]) -> str:
    """The value of --config, as written."""
    named = [a.partition("=")[2] for a in argv if a.startswith(("--config=", "-config="))]
    named += [after for a, after in itertools.pairwise(argv) if a in ("--config", "-config")]
    if not named:
        raise ConfigError("no configuration was given; pass for example --config=configs/mapet.py")
    return named[-1]


def parse(argv: Sequence[str]) -> list[str]:
    """Flags, with absl's and ml_collections' complaints turned into one sentence."""
    path = _config_flag(argv).partition(":")[0]
    if not Path(path).is_file():
        raise ConfigError(f"the configuration file {path} does not exist{nearest_config_file(path)}")
    try:
        return list(flags.FLAGS(list(argv)))
    except (ConfigError, DataError):
        raise
    except (flags.Error, AttributeError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(explain(error, argv)) from error


def run(argv: Sequence[str]) -> int:
    """Everything; the exit code. Mistakes of the user end in one sentence on stderr."""
    try:
        if {"--help", "-h", "-help"} & set(argv):
            print(USAGE)
            return 0
        rest = parse(argv)
        if len(rest) > 1:
            raise ConfigError(f"unexpected argument {rest[1]!r}: options are written --config.key=value")
        config = check(flags.FLAGS.config)
        check_task, run_task = TASKS[one_of("config.task", config.task, TASKS)]
        check_task(config)
        workdir = Path(flags.FLAGS.workdir or default_workdir(_config_flag(argv)))
        distributed.join()
        if flags.FLAGS.overwrite and workdir.exists():
            _delete_run(workdir)
        return run_task(config, workdir)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"mim_jax: {error}", file=sys.stderr)
        return USAGE_ERROR
    except Diverged as error:
        print(f"mim_jax: {error}", file=sys.stderr)
        return DIVERGED


def _delete_run(workdir: Path) -> None:
    """Deletes a run, and nothing that is not one."""
    if any(workdir.iterdir()) and not (workdir / "config.json").exists():
        raise ConfigError(
            f"--overwrite: {workdir} holds no run of ours (no config.json), so it is not deleted"
        )
    shutil.rmtree(workdir)


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
