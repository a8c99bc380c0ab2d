"""The attack's own eyes, and a sample of its cases (all of them: python -m tests.attack)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def attack(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.attack", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=900)


@pytest.mark.slow
def test_what_the_harness_calls_each() -> None:
    """A hang, a traceback, an executed pickle must be seen as such, or the table says nothing."""
    done = attack("--file=misjudged", "--verbose", "--bare")
    assert done.returncode == 1, done.stderr
    told = [line.split(" s  ") for line in done.stdout.splitlines() if " s  " in line]
    seen = {name.partition(": ")[0]: left.rpartition("  ")[0].strip() for left, name in told}
    assert len(seen) == 17
    for name, outcome in seen.items():
        assert outcome == name.partition(" / ")[0], (name, outcome)


@pytest.mark.slow
def test_a_sample_of_every_area() -> None:
    """Every 32nd case of each area; all of them: python -m tests.attack."""
    done = attack("--sample=32")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    areas = {line.split("  ")[0].strip() for line in done.stdout.splitlines()[1:] if line[:1].isalpha()}
    assert len(areas) >= 10
