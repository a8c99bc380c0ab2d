"""python -m mim_jax.compare --config=configs/compare.py[:PRESET] --workdir=DIR [--jobs=N] [--config.key=value ...]

Exit codes: 0 all is done, 1 some cells failed (the same command tries them again), 2 a mistake of the user's, 75 asked to
stop (the same command goes on). Runs at a time have a share of the cores each. On a GPU, --jobs above 1 needs
XLA_PYTHON_CLIENT_PREALLOCATE=false, or the first run takes the memory of all.
"""

import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from mim_jax.compare.calibration import calibration, calibration_key, in_seconds
from mim_jax.compare.control import Stop, locked, say
from mim_jax.compare.facts import facts
from mim_jax.compare.pages import write_pages
from mim_jax.compare.process import MAIN
from mim_jax.compare.protocol import Protocol, read_protocol
from mim_jax.compare.records import Records
from mim_jax.compare.stages import Job, cell, evaluation, own_length, pretraining
from mim_jax.compare.table import Table
from mim_jax.compare.work import Work
from mim_jax.config.arguments import Parser
from mim_jax.config.check import ConfigError
from mim_jax.config.errors import print_error
from mim_jax.config.files import load, override
from mim_jax.storage import StorageError, make_directory, parse_path, require_local
from mim_jax.storage.marker import Marker, check_directory, follow_link, write_marker
from mim_jax.training.shutdown import EXIT_AGAIN

FAILURES, USAGE_ERROR = 1, 2
TASK = "compare"
ENDS = {0: "done", FAILURES: "done but for what failed", EXIT_AGAIN: "stopped; the same command goes on"}


def parse(argv: Sequence[str]) -> tuple[Protocol, Path, int]:
    """The protocol, the directory and the number of runs at a time.

    Raises:
        ConfigError: one sentence.
    """
    parser = Parser("python -m mim_jax.compare", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE[:PRESET]")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--jobs", default=1, type=int, metavar="N", help="runs at a time")
    options, values = parser.parse_with_assignments(argv)
    if options.jobs < 1:
        raise ConfigError(f"--jobs={options.jobs} must be at least 1")
    root = require_local(
        follow_link(parse_path(options.workdir, "--workdir")),
        "a comparison's runs share its directory with a lock of the disk",
    )
    return read_protocol(override(load(options.config), values)), root, options.jobs


def compare(protocol: Protocol, root: Path, slots: int, main: Sequence[str], command: str) -> int:
    """Runs what is missing, writing the tables after every stage; the exit code."""
    jobs = {arm: pretraining(protocol, arm) for arm in protocol.chosen}
    for name in protocol.evaluate:
        evaluation(protocol, name)  # a mistake there is said before anything is trained
    directory = epath.Path(root)
    check_directory(directory, TASK)
    make_directory(root, "--workdir")
    with Stop().on_signals() as stop, locked(root, stop) as lock:
        if lock is None:
            return EXIT_AGAIN
        check_directory(directory, TASK)  # nobody else may change it now
        write_marker(directory, Marker(TASK))
        records = Records(root / "results")
        changed = functools.partial(_write, root, protocol, records, jobs, command, slots)
        work = Work(records, main, lock.fileno(), stop, changed)
        lengths = dict(jobs)
        if protocol.budget == "seconds":
            lengths = _calibrated(protocol, root, jobs, records, work)
        cells = [
            cell(protocol, arm, seed, job, root) for seed in protocol.seeds for arm, job in lengths.items()
        ]
        records.refuse_others(stage for stages in cells for stage in stages)
        changed()
        work.run(cells, slots)
        changed()
        complete = len(lengths) == len(jobs) and all(
            records.is_done(stage.key) for stages in cells for stage in stages
        )
        code = 0 if complete else EXIT_AGAIN if stop.asked else FAILURES
        say(f"{ENDS[code]}: {root / 'table.md'}")
        return code


def _calibrated(
    protocol: Protocol, root: Path, jobs: dict[str, Job], records: Records, work: Work
) -> dict[str, Job]:
    """The arms as long as the budget says; those that could not be measured are left out."""
    trials = {
        arm: calibration(protocol, arm, job, root)
        for arm, job in jobs.items()
        if not own_length(protocol.arms[arm])
    }
    records.refuse_others(trials.values())
    work.run([[trial] for trial in trials.values()], 1)  # alone on the machine, whatever --jobs says
    lengths = {}
    for arm, job in jobs.items():
        record = records.get(calibration_key(arm))
        if arm not in trials:
            lengths[arm] = job
        elif record is not None and records.is_done(trials[arm].key):
            lengths[arm] = in_seconds(protocol, arm, job, record)
    return lengths


def _write(
    root: Path, protocol: Protocol, records: Records, jobs: dict[str, Job], command: str, slots: int
) -> None:
    table = Table(protocol, records)
    write_pages(root, table, facts(table, jobs, command, slots))


def run(argv: Sequence[str], main: Sequence[str] = MAIN) -> int:
    """Everything; the exit code. Mistakes of the user end in one sentence on stderr.

    Args:
        main: the command that runs a stage.
    """
    try:
        protocol, root, slots = parse(argv)
        return compare(protocol, root, slots, main, shlex.join(["python", "-m", "mim_jax.compare", *argv]))
    except (ConfigError, StorageError) as error:
        print_error(error)
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
