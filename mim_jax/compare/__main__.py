"""Trains and evaluates several methods under equal conditions, and writes tables of the results with their intervals.

    python -m mim_jax.compare --config=configs/compare.py --workdir=runs/comparison

configs/compare.py says which arms, seeds and evaluations there are. Every run of the comparison is a process of its own; runs at a
time have an equal number of cores each. On a GPU, --jobs above 1 needs XLA_PYTHON_CLIENT_PREALLOCATE=false, or the first run
allocates the memory of all.

Exit codes: 0 all is done, 1 some cells failed (the same command retries them), 2 a mistake of the user's, 75 asked to stop (the
same command resumes).
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from mim_jax.compare.config import ComparisonConfig, check_comparison
from mim_jax.compare.report import write_report
from mim_jax.compare.results import EPOCHS, SPEED, ResultStore
from mim_jax.compare.scheduler import MAIN, Scheduler, StopRequest, exclusive, print_with_time
from mim_jax.compare.stages import (
    RunSpec,
    calibration_key,
    calibration_stage,
    cell_stages,
    evaluation,
    fit_to_budget,
    pretraining,
    sets_length,
)
from mim_jax.compare.table import Table
from mim_jax.config.arguments import Parser, command, positive, start
from mim_jax.config.check import ConfigError
from mim_jax.config.files import load, override
from mim_jax.errors import ExitCode
from mim_jax.storage import make_directory, parse_path, require_local
from mim_jax.storage.marker import Marker, check_directory, follow_link, write_marker

TASK = "compare"
OUTCOMES = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "done, but some cells failed",
    ExitCode.STOPPED: "stopped; the same command resumes",
}


def parse(argv: Sequence[str]) -> tuple[ComparisonConfig, Path, int]:
    """The configuration, the directory and the number of runs at a time.

    Raises:
        ConfigError: one sentence.
    """
    parser = Parser("python -m mim_jax.compare", __doc__)
    parser.add_config()
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="where runs and tables go, on a disk; resumed if it holds some",
    )
    parser.add_argument("--jobs", default=1, type=positive, metavar="N", help="runs at a time (1)")
    options, values = parser.parse_with_assignments(argv)
    root = require_local(
        follow_link(parse_path(options.workdir, "--workdir")),
        "a comparison's runs share its directory with a lock of the disk",
    )
    return check_comparison(override(load(options.config), values)), root, options.jobs


def compare(
    comparison: ComparisonConfig, root: Path, num_jobs: int, main: Sequence[str], command: str
) -> int:
    """Runs what is missing, writing the tables after every stage; the exit code."""
    pretrain_runs = {arm: pretraining(comparison, arm) for arm in comparison.arm_names}
    for name in comparison.evaluate:
        evaluation(comparison, name)  # reports a mistake there before anything is trained
    directory = epath.Path(root)
    check_directory(directory, TASK)
    make_directory(root, "--workdir")
    with StopRequest().on_signals() as stop, exclusive(root, stop) as lock:
        if lock is None:
            return ExitCode.STOPPED
        check_directory(directory, TASK)  # nobody else may change it now
        write_marker(directory, Marker(TASK))
        results = ResultStore(root / "results")

        def write() -> None:
            write_report(root, Table(comparison, results), pretrain_runs, command, num_jobs)

        scheduler = Scheduler(results, main, lock.fileno(), stop, on_result=write)
        runs = pretrain_runs
        if comparison.budget == "seconds":
            runs = _calibrate(comparison, root, pretrain_runs, results, scheduler)
        cells = [
            cell_stages(comparison, arm, seed, run, root)
            for seed in comparison.seeds
            for arm, run in runs.items()
        ]
        stages = [stage for cell in cells for stage in cell]
        results.check_same_settings(stages)
        write()
        scheduler.run(cells, num_jobs)
        write()
        complete = len(runs) == len(pretrain_runs) and all(results.is_done(stage.key) for stage in stages)
        code = ExitCode.DONE if complete else ExitCode.STOPPED if stop.received else ExitCode.FAILED
        print_with_time(f"{OUTCOMES[code]}: {root / 'table.md'}")
        return code


def _calibrate(
    comparison: ComparisonConfig,
    root: Path,
    runs: dict[str, RunSpec],
    results: ResultStore,
    scheduler: Scheduler,
) -> dict[str, RunSpec]:
    """The arms' runs, as long as the budget says; without the arms whose calibration failed."""
    calibrations = {
        arm: calibration_stage(comparison, arm, run, root, required=(SPEED, EPOCHS))
        for arm, run in runs.items()
        if not sets_length(comparison.arms[arm])
    }
    results.check_same_settings(calibrations.values())
    scheduler.run(
        [[stage] for stage in calibrations.values()], 1
    )  # alone on the machine, whatever --jobs says
    fitted = {}
    for arm, run in runs.items():
        result = results.get(calibration_key(arm))
        if arm not in calibrations:
            fitted[arm] = run
        elif result is not None and results.is_done(calibration_key(arm)):
            if missing := [key for key in (SPEED, EPOCHS) if key not in result.values]:
                raise ConfigError(
                    f"{root}/results/{calibration_key(arm)}.json lacks {missing[0]}: move it away to calibrate again"
                )
            fitted[arm] = fit_to_budget(comparison, run, result.values[SPEED], result.values[EPOCHS])
    return fitted


@command
def run(argv: Sequence[str], main: Sequence[str] = MAIN) -> int:
    """The exit code. A mistake of the user is one sentence on stderr. main: the command that runs a stage."""
    comparison, root, num_jobs = parse(argv)
    command_line = shlex.join(["python", "-m", "mim_jax.compare", *argv])
    return compare(comparison, root, num_jobs, main, command_line)


if __name__ == "__main__":
    sys.exit(start(run, sys.argv[1:]))
