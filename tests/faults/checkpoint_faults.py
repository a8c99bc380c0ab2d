"""What a run loses when its machine fails: kill -9, damaged checkpoints, a full disk, SIGTERM.

    python tests/faults/checkpoint_faults.py --kills 100

After each fault tiny_run is started again; what it resumes from, and where it arrives in the end, is compared
with an uninterrupted run bit for bit. Prints a Markdown table and ends with 1 if anything was lost.

recovered: the next start resumed. bit-identical: from what the uninterrupted run had at that step, and it came
to the same end. lost: a step that was saved, and not damaged by us, was not resumed from.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from absl import logging
from damage import DAMAGE, flip_bit
from tiny_run import SAVE_EVERY, train

from mim_jax.errors import ExitCode
from mim_jax.training.checkpoints import CheckpointError


@dataclass
class Row:
    """One line of the table."""

    case: str
    trials: int = 0
    recovered: int = 0
    identical: int = 0
    lost: int = 0

    def add(self, *, recovered: bool, identical: bool, lost: bool) -> None:
        """Counts one trial."""
        self.trials += 1
        self.recovered += recovered
        self.identical += identical
        self.lost += lost


def _said(lines: list[str], word: str) -> list[list[str]]:
    return [line.split()[1:] for line in lines if line.startswith(word + " ")]


def _states(until: int, scratch: Path) -> dict[int, str]:
    """The digest of every saved step of a run that nothing interrupts."""
    lines: list[str] = []
    train(scratch / f"reference-{until}", until, lines.append, history=True)
    states = {int(step): value for step, value in _said(lines, "state") + _said(lines, "final")}
    return states | {0: _said(lines, "resumed")[0][1]}


def _start(directory: Path, until: int) -> "subprocess.Popen[str]":
    command = [sys.executable, str(Path(__file__).with_name("tiny_run.py")), str(directory), str(until)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _interrupt(directory: Path, number: signal.Signals, delay: float) -> tuple[list[str], int]:
    """Starts the run, sends the signal `delay` seconds after it is ready; what it said, and its exit code."""
    run = _start(directory, 10**9)
    assert run.stdout is not None
    run.stdout.readline()
    time.sleep(delay)
    run.send_signal(number)
    return run.communicate()[0].splitlines(), run.returncode


def _leftover(directory: Path) -> int | None:
    """When an interrupted save was last written to, which tells it from the one that an earlier kill left."""
    return next((path.stat().st_mtime_ns for path in directory.glob("*.orbax-checkpoint-tmp")), None)


def kills(count: int, draw: random.Random, scratch: Path) -> list[Row]:
    """One run, killed `count` times, then asked to stop by SIGTERM, then let run to its end."""
    directory = scratch / "killed"
    resumed: list[
        tuple[int, str, int, int]
    ] = []  # step, digest, newest step known to be saved, kills this answers for
    saved = unanswered = inside = 0
    leftover: int | None = None
    for start in range(count + 1):
        number, delay = (signal.SIGKILL, draw.uniform(0.0, 1.2)) if start < count else (signal.SIGTERM, 2.0)
        lines, code = _interrupt(directory, number, delay)
        for step, value in _said(lines, "resumed"):
            resumed.append((int(step), value, saved, unanswered))
            unanswered = 0  # a start killed before it had resumed leaves the answer to the next
        unanswered += 1
        leftover, before = _leftover(directory), leftover
        inside += leftover not in (None, before)
        saved = max([saved, *(int(step) for (step,) in _said(lines, "saved"))])
    stopped = _said(lines, "stopped")
    until = saved + 10 * SAVE_EVERY
    ends: list[str] = []
    train(directory, until, ends.append)
    states = _states(until, scratch)
    arrived = _said(ends, "final") == [[str(until), states[until]]]
    row = Row(f"kill -9 at a random instant ({inside} inside a save)")
    for known, value, promised, answers in resumed:
        for _ in range(answers):
            row.add(recovered=True, identical=arrived and states[known] == value, lost=known < promised)
    polite = Row(f"SIGTERM (exit code {code})")
    same = _said(ends, "resumed") == stopped
    polite.add(recovered=code == ExitCode.STOPPED, identical=same and arrived, lost=not same)
    return [row, polite]


def _resumes(row: Row, directory: Path, until: int, states: dict[int, str], expected: int) -> None:
    """Runs on to `until` and counts whether it resumed at `expected` and arrived."""
    lines: list[str] = []
    train(directory, until, lines.append)
    step, value = _said(lines, "resumed")[0]
    arrived = _said(lines, "final") == [[str(until), states[until]]]
    row.add(recovered=True, identical=arrived and states[int(step)] == value, lost=int(step) != expected)


def damage(trials: int, draw: random.Random, states: dict[int, str], scratch: Path) -> list[Row]:
    """Damages the newest of three checkpoints, then both newest, then all."""
    last, until = 4 * SAVE_EVERY, max(states)
    whole = scratch / "whole"
    train(whole, last, lambda line: None)
    names = sorted((path.name for path in whole.iterdir()), reverse=True)
    rows = []
    for case, harm in DAMAGE.items():
        row = Row(case)
        for _ in range(trials):
            broken = shutil.copytree(whole, scratch / "broken")
            harm(broken / names[0], draw)
            _resumes(row, broken, until, states, last - SAVE_EVERY)
            shutil.rmtree(broken)
        rows.append(row)
    both = Row("the two newest damaged")
    for _ in range(trials):
        broken = shutil.copytree(whole, scratch / "broken")
        for name in names[:2]:
            draw.choice(list(DAMAGE.values()))(broken / name, draw)
        _resumes(both, broken, until, states, last - 2 * SAVE_EVERY)
        shutil.rmtree(broken)
    return [*rows, both, _all_damaged(whole, names, until, draw, scratch)]


def _all_damaged(whole: Path, names: list[str], until: int, draw: random.Random, scratch: Path) -> Row:
    row = Row("all damaged: refused in one sentence")
    broken = shutil.copytree(whole, scratch / "broken")
    for name in names:
        flip_bit(broken / name, draw)
    try:
        train(broken, until, lambda line: None)
    except CheckpointError as error:
        row.add(recovered="\n" not in str(error), identical=True, lost=False)
    else:
        row.add(recovered=False, identical=False, lost=True)
    return row


def disk_full(states: dict[int, str], scratch: Path) -> Row:
    """Runs in a tmpfs with room for two checkpoints; then gives it room, and it goes on."""
    small = scratch / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(small), "-o"]
    if shutil.which("mount") is None or subprocess.run([*mount, "size=7m"], check=False).returncode:
        return Row("disk full while saving (not run: mounting a tmpfs needs root)")
    row = Row("disk full while saving")
    lines: list[str] = []
    try:
        train(small / "run", max(states), lines.append)
        row.add(recovered=False, identical=False, lost=True)  # it was not full
    except CheckpointError as error:
        assert "the disk is full" in str(error) and "\n" not in str(error)
        saved = max(int(step) for (step,) in _said(lines, "saved"))
        subprocess.run([*mount, "remount,size=90m"], check=True)
        _resumes(row, small / "run", max(states), states, saved)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    return row


def main() -> int:
    """Runs every case and prints the table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--trials", type=int, default=5, help="for each kind of damage")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    logging.set_verbosity(logging.FATAL)  # refusals are warnings; here they are the point
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        rows = kills(given.kills, draw, scratch)
        short = _states(8 * SAVE_EVERY, scratch)
        rows += damage(given.trials, draw, short, scratch)
        rows.append(disk_full(short, scratch))
    print("| case | trials | recovered | bit-identical | lost |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.case} | {row.trials} | {row.recovered} | {row.identical} | {row.lost} |")
    return int(any(row.lost or row.recovered < row.trials or row.identical < row.trials for row in rows))


if __name__ == "__main__":
    sys.exit(main())
