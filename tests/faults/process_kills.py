"""kill -9 of one of two processes at random instants, again and again: the other ends, nothing is lost, the end is bit for bit the same.

    python -m tests.faults.process_kills [KILLS=50] [SEED=0]

A run of two processes (gloo) is started; after a random time, from its start on, one of them is killed; the other must end within
two minutes with one sentence and a code that is not 0. The same command goes on, until so many were killed; then it runs to its end,
and is compared with a run that nobody disturbed.
"""

import contextlib
import io
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mim_jax.errors import ExitCode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import test_processes as processes

STEPS = 400
SPAN = 20.0
"""Seconds from the start, within which a process is killed: importing, meeting, compiling, training and saving."""
SENTENCE = re.compile(r"mim_jax: process [01] .+")


def main(kills: int = 50, seed: int = 0) -> int:
    """Prints a line for each kill and the outcome; 0 = nothing was lost."""
    processes.OPTIONS |= {"schedule.steps": STEPS, "checkpoint.every_steps": 5, "eval.every_steps": STEPS}
    random = np.random.default_rng(seed)
    failures, slowest, killed, finished = 0, 0.0, 0, False
    with tempfile.TemporaryDirectory() as name:
        whole, parts = Path(name) / "whole", Path(name) / "parts"
        with contextlib.redirect_stdout(io.StringIO()):
            assert [code for code, _, _ in processes.finish(processes.start(whole, 2))] == [0, 0]
        while killed < kills:
            pair = processes.start(parts, 2, [["--start_timeout=20"]] * 2)
            delay, victim = random.uniform(0.0, SPAN), int(random.integers(2))
            deadline = time.monotonic() + delay
            while time.monotonic() < deadline and all(process.poll() is None for process in pair):
                time.sleep(0.02)
            if all(process.poll() is not None for process in pair):
                codes = [code for code, _, _ in processes.finish(pair)]
                finished, failures = True, failures + (codes != [0, 0])
                print(
                    f"finished before {killed + 1} kills, codes {codes}: a run from the start for the rest",
                    flush=True,
                )
                failures += not same(parts, whole)
                parts = parts.with_name(f"parts-{killed}")
                continue
            pair[victim].send_signal(signal.SIGKILL)
            started, killed = time.monotonic(), killed + 1
            with contextlib.redirect_stdout(io.StringIO()) as told:
                ended = processes.finish(pair)
            code, _, err = ended[1 - victim]
            seconds = time.monotonic() - started
            slowest = max(slowest, seconds)
            fine = (
                code not in (0, None)
                and len(err.splitlines()) == 1
                and SENTENCE.fullmatch(err) is not None
                and seconds < 120
            )
            failures += not fine
            if code not in (ExitCode.STOPPED, ExitCode.USAGE_ERROR):
                print(told.getvalue()[-4000:])
            steps = re.findall(r"^step +(\d+)/", "".join(one[1] for one in ended), re.M)
            print(
                f"{killed:3} after {delay:5.1f} s, process {victim}, step {steps[-1] if steps else '-':>3}: the other ended with"
                f" {code} in {seconds:.1f} s{'' if fine else f' WRONG: {err!r}'}", flush=True,
            )  # fmt: skip
        codes = [code for code, _, _ in processes.finish(processes.start(parts, 2))]
        lost = failures + (codes != [0, 0]) + (not same(parts, whole))
        print(
            f"{killed} kills, slowest end of the other {slowest:.1f} s, finished meanwhile {finished}, wrong or lost {lost}"
        )
        return ExitCode.FAILED if lost else ExitCode.DONE


def same(parts: Path, whole: Path) -> bool:
    """Whether two finished runs are bit for bit the same."""
    processes.LAST_STEP = STEPS
    ours, theirs = processes.arrays(parts), processes.arrays(whole)
    return (
        processes.history(parts) == processes.history(whole)
        and ours.keys() == theirs.keys()
        and all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    )


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
