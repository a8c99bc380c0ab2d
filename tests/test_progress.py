"""Progress: silent while work is short, then lines with a smoothed estimate; a bar on a terminal."""

import sys
import time

import numpy as np
import pytest

from mim_jax import progress
from mim_jax.progress import Estimate, Progress, format_duration, tracked
from mim_jax.tokenizers.kmeans import KMeansOptions, fit_kmeans
from mim_jax.training.monitoring.goodput import WallTime
from mim_jax.training.monitoring.monitor import Throughput, log_compilation, progress_line


class FakeTime:
    """A clock that only moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock_of(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    return FakeTime(monkeypatch)


def test_short_work_says_nothing(clock_of: FakeTime, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("features", 40) as shown:
        for _ in range(4):
            clock_of.now += 1.2
            shown.update(10)
    assert capsys.readouterr().out == ""


def test_long_work_says_how_far_it_is(clock_of: FakeTime, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten images a second: a line after five seconds, then every half minute, and one at the end."""
    with Progress("features", 1000) as shown:
        for _ in range(100):
            clock_of.now += 1.0
            shown.update(10)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "features: 50 of 1,000 images (5 %), 10 images/s, left 1:35"
    assert [line.split()[1] for line in lines] == ["50", "350", "650", "950", "1,000"]
    assert lines[-1] == "features: 1,000 images in 1:40"


def test_unknown_total_and_failed_work(clock_of: FakeTime, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), Progress("reading", None, "files") as shown:
        clock_of.now += 8.0
        shown.update(2000)
        raise RuntimeError
    assert capsys.readouterr().out == "reading: 2,000 files, 250 files/s\n"


def test_one_slow_lap_does_not_swing_the_estimate() -> None:
    """Ten units a second, once a lap of a tenth of that speed: the last lap alone would say 10 times as long."""
    estimate = Estimate()
    assert estimate.seconds_for(100) is None
    for _ in range(50):
        estimate.lap(10, 1.0)
    assert estimate.seconds_for(100) == pytest.approx(10.0)
    estimate.lap(1, 1.0)
    assert 10.0 < estimate.seconds_for(100) < 13.0
    for _ in range(50):
        estimate.lap(20, 1.0)
    assert estimate.seconds_for(100) == pytest.approx(5.0, rel=1e-3)  # it does follow


def test_the_runs_clock_leaves_the_compilation_out(clock_of: FakeTime) -> None:
    """A first update of 90 s, then two a second: what is left is never judged by the first."""
    run = Throughput(first_step=0, total_steps=101, batch_size=8)
    run.start()
    clock_of.now += 90.0
    first = run.lap(1, 0.0)
    values = {"train/loss": 1.0, "train/lr": 1.0, **first}
    assert "perf/seconds_left" not in first and "left" not in progress_line(1, 101, values)
    clock_of.now += 5.0
    second = run.lap(11, 0.0)
    assert second["perf/seconds_left"] == pytest.approx(45.0)
    assert progress_line(11, 101, {**values, **second}).endswith("left 0:45")
    clock_of.now += 20.0  # one slow lap
    third = run.lap(21, 0.0)
    assert third["perf/images_per_sec"] == pytest.approx(4.0)
    assert 40.0 < third["perf/seconds_left"] < 160.0  # the lap alone: 160


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with Progress("features", 4) as shown:
        shown._bar.delay = 0.0  # type: ignore[union-attr]
        for _ in range(4):
            time.sleep(0.12)
            shown.update()
    out = capsys.readouterr().out
    assert "features" in out and "4/4" in out and out.count("\n") == 0


@pytest.mark.slow
def test_kmeans_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    points = np.random.default_rng(0).random((400, 3), np.float32)
    fit_kmeans(points, KMeansOptions(32, 4, 1, start="plus_plus"))
    said = capsys.readouterr().out
    assert "k-means++ start: 1 of 32 centroids" in said and "k-means++ start: 32 centroids in 0:" in said
    assert "k-means pass: 400 points in 0:" in said


def test_tracked_counts_what_was_consumed(clock_of: FakeTime, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in tracked(range(3), "k-means", 3, "iterations"):
        clock_of.now += 4.0
    assert capsys.readouterr().out.splitlines()[0] == "k-means: 2 of 3 iterations (66 %), 4 s each, left 0:04"


def test_the_first_call_of_a_step_says_that_it_compiles(capsys: pytest.CaptureFixture[str]) -> None:
    step = log_compilation(lambda x: x + 1, "the training step", WallTime(0.0))
    assert step(1) == 2 and step(2) == 3
    assert capsys.readouterr().out.splitlines() == [
        "compiling the training step",
        "compiled the training step in 0:00",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (37, "0:37"), (65, "1:05"), (600, "10:00"), (3723, "1:02:03")]
)
def test_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
