"""Comparisons: what runs, what is stored, what the tables hold. Nothing is trained: a small script stands in for main."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mim_jax.compare import scheduler
from mim_jax.compare.__main__ import run
from mim_jax.compare.config import PRETRAIN
from mim_jax.compare.scheduler import split_cores

pytestmark = pytest.mark.slow

SPEED, EXAMPLES = 200.0, 640
"""Images/s and training images that the stand-in pretends to have."""

STAND_IN = f"""
import json, os, signal, sys, time
from pathlib import Path
flags = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
here, workdir = Path(__file__).parent, Path(flags["workdir"])
name = workdir.parent.name + "/" + workdir.name
def note(what):
    with (here / "events").open("a") as file:
        file.write(what + " " + name + "\\n")
def starts(of):
    return (here / "events").read_text().splitlines().count("start " + of)
note("start")
(here / ("cores-" + name.replace("/", "-"))).write_text(json.dumps(sorted(os.sched_getaffinity(0))))
def asked(*_):
    note("asked")
    sys.exit(75)
signal.signal(signal.SIGTERM, asked)
order = json.loads((here / "orders.json").read_text()).get(name, {{}})
if starts(name) <= order.get("again", 0):
    sys.exit(75)
deadline = time.time() + 20
while "until" in order and not starts(order["until"]):
    assert time.time() < deadline
    time.sleep(0.01)
time.sleep(order.get("sleep", 0))
if "exit" in order:
    print("step 1\\n" + order["words"] + "\\n")
    sys.exit(order["exit"])
workdir.mkdir(parents=True, exist_ok=True)
init = flags.get("config.init")
steps = int(flags.get("config.schedule.steps", 40))
top1 = float(flags["config.optim.lr"]) + 0.01 * int(flags.get("config.seed", 0))
if init:
    assert (Path(init) / "metrics.jsonl").exists()
lines = [{{"step": 0, "eval/knn_top1": 0.0}}, {{"step": 1, "perf/images_per_sec": 1.0}}]
lines += [{{"step": step, "perf/images_per_sec": {SPEED}}} for step in (2, 3) if step <= steps]
lines += [{{"step": steps, **({{"eval/top1": top1, "eval/top1_stderr": 0.02}} if init else {{"eval/knn_top1": top1}})}}]
(workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
if init:
    right = {{"z": 60, "b": 60, "c": 20}}.get(name[0], 0)
    (workdir / "per_image.json").write_text(json.dumps({{"eval/top1": "1" * right + "0" * (100 - right)}}))
if "damage" in order:
    (workdir / order["damage"]).write_text('{{"step": 1}}\\n{{"step": \\n{{"step": 3}}\\n')
(workdir / "config.json").write_text(json.dumps({{"schedule": {{"epochs": steps * 16 / {EXAMPLES}}}}}))
(workdir / "sessions.json").write_text(json.dumps([{{"seconds": 2.0}}, {{"seconds": 3.0}}]))
(workdir / "versions.json").write_text(json.dumps({{"jax": "1.2.3", "devices": "1 x stand-in"}}))
note("end")
"""

RUN_FILE = """
import dataclasses
from mim_jax.config.check import default_config, with_options
@dataclasses.dataclass(frozen=True)
class Options:
    start: int = 4
def get_config(preset=None):
    config = default_config()
    with_options(config, preset or "plain", Options)
    config.data.batch_size = 16
    return config
"""

COMPARISON = """
from mim_jax.compare.config import default_comparison
def get_config(preset=None):
    config = default_comparison()
    config.arms.update(z="{run},optim.lr=0.5", b="{run},optim.lr=0.505", c="{run},optim.lr=0.3")
    config.seeds = (0, 1)
    config.shared.update(schedule=dict(epochs=20.0, warmup_epochs=2.0), data=dict(source="folder:x"))
    config.shared.method = dict(start=3, unknown=1)
    config.evaluate.probe = "{run}"
    config.evaluate_shared.probe = dict(optim=dict(lr=0.7))
    config.columns = (
        ("k-NN %", "pretrain", "eval/knn_top1", "higher", 100.0),
        ("images/s", "pretrain", "perf/images_per_sec"),
        ("wall s", "pretrain", "wall_seconds"),
        ("probe %", "probe", "eval/top1", "higher", 100.0),
        ("memory", "pretrain", "perf/peak_memory_mib"),
    )
    config.epoch_keys = ("schedule.warmup_epochs", "method.start")
    return config
"""


class Comparison:
    """A comparison in a directory of its own, with a stand-in for main that takes orders by stage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "out"
        self.main = [sys.executable, "-I", str(folder / "stand_in.py")]
        (folder / "stand_in.py").write_text(STAND_IN)
        (folder / "run.py").write_text(RUN_FILE)
        (folder / "comparison.py").write_text(COMPARISON.format(run=folder / "run.py"))
        self.order({})

    def order(self, orders: dict[str, dict[str, Any]]) -> None:
        (self.folder / "orders.json").write_text(json.dumps(orders))

    def arguments(self, *more: str) -> list[str]:
        return [f"--config={self.folder / 'comparison.py'}", f"--workdir={self.root}", *more]

    def run(self, *more: str) -> int:
        return run(self.arguments(*more), self.main)

    def in_a_process(self, *more: str) -> subprocess.Popen[str]:
        program = (
            "import sys; from mim_jax.compare.__main__ import run; sys.exit(run(sys.argv[4:], sys.argv[1:4]))"
        )
        command = [sys.executable, "-c", program, *self.main, *self.arguments(*more)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def events(self) -> list[str]:
        path = self.folder / "events"
        return path.read_text().splitlines() if path.exists() else []

    def starts(self) -> dict[str, int]:
        """Stage -> how often it was started."""
        return Counter(event.split()[1] for event in self.events() if event.startswith("start "))

    def wait_for(self, event: str) -> None:
        deadline = time.time() + 30
        while event not in self.events():
            assert time.time() < deadline, f"{event} never happened"
            time.sleep(0.02)

    def table(self) -> dict[str, list[str]]:
        """Arm -> its texts in table.md."""
        return {arm: texts for arm, *texts in self.rows("# Comparison")}

    def rows(self, heading: str) -> list[list[str]]:
        """The rows of the table below a heading of table.md."""
        section = (self.root / "table.md").read_text().partition(heading)[2].partition("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        return [[text.strip() for text in line.strip("| ").split(" | ")] for line in lines]


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0.01)
    return Comparison(tmp_path)


def test_table(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seeds of three arms: values, intervals, provenance, files; a second start runs nothing."""
    assert comparison.run() == 0
    assert comparison.table() == {
        "arm": ["k-NN %", "images/s", "wall s", "probe %", "memory"],
        "z": [
            "50.50 ± 6.35",
            "200",
            "5",
            "70.50 ± 6.35",
            "–",
        ],  # 0.5 times the 97.5 % quantile of t with 1 degree
        "b": ["51.00 ± 6.35", "200", "5", "70.50 ± 6.35", "–"],
        "c": ["30.50 ± 6.35", "200", "5", "70.50 ± 6.35", "–"],
    }
    differences = comparison.rows("## Differences")
    assert [[row[0], *row[2:]] for row in differences] == [
        ["quality", "difference", "interval over seeds", "over test images", "distinct"],
        ["k-NN %", "-0.50", "-3.54 to +2.54", "–", "no"],  # sqrt(0.5) times that with 2 degrees
        ["k-NN %", "-20.50", "-23.54 to -17.46", "–", "yes"],
        ["probe %", "+0.00", "-3.04 to +3.04", "+0.00 to +0.00", "no"],
        ["probe %", "+0.00", "-3.04 to +3.04", differences[4][4], "no"],
    ]
    assert [row[1] for row in differences[1:]] == ["z − b", "c − b", "b − z", "c − z"]
    low, high = map(float, differences[4][4].split(" to "))
    assert -52 < low < -45 and -35 < high < -28  # 40 of 100 images: -40 ± 9.6
    text = (comparison.root / "table.md").read_text()
    assert "95% t interval over seeds" in text and "–: the run logged no such number" in text
    assert "1 x stand-in" in text and "jax 1.2.3" in text and "equal images: 20 epochs" in text
    assert f"python -m mim_jax.compare --config={comparison.folder}" in text
    starts = [event for event in comparison.events() if event.startswith("start ")]
    assert starts[:6] == [f"start {arm}-0/{stage}" for arm in "zbc" for stage in (PRETRAIN, "probe")]
    with (comparison.root / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"]) for row in rows] == [
        (arm, str(seed)) for seed in (0, 1) for arm in "zbc"
    ]
    assert float(rows[3]["k-NN %"]) == pytest.approx(51.0) and rows[3]["probe"] == "done"
    page = (comparison.root / "table.html").read_text()
    assert (
        "data:image/png;base64," in page
        and "http" not in page
        and "50.50 ± 6.35" in page
        and "-23.54 to -17.46" in page
    )
    result = json.loads((comparison.root / "results/z-1-pretrain.json").read_text())
    assert "--config.method.start=3" in result["command"] and "unknown" not in result["command"]
    assert "--config.data.source=folder:x" in result["command"] and "--config.seed=1" in result["command"]
    assert (
        f"--config.init={comparison.root / 'z-1' / PRETRAIN}"
        in (json.loads((comparison.root / "results/z-1-probe.json").read_text())["command"])
    )
    before = comparison.events()
    assert comparison.run("--config.only=z,b") == 0
    assert comparison.events() == before and list(comparison.table()) == ["arm", "z", "b"]
    assert "finished z, seed 0, pretrain in 0 s; 11 of 12 stages left" in capsys.readouterr().out


def test_one_seed_says_nothing(comparison: Comparison) -> None:
    assert comparison.run("--config.only=z,b", "--config.seeds=(0,)") == 0
    assert comparison.table()["z"][0] == "50.00"
    assert comparison.rows("## Differences")[1][2:] == ["-0.50", "–", "–", "–"]


def test_failed_cell_is_shown_and_tried_again(comparison: Comparison) -> None:
    comparison.order({"z-1/pretrain": {"exit": 3, "words": "mim_jax: update 5 | diverged"}})
    assert comparison.run("--config.only=z,b") == 1
    row = comparison.table()["z"]
    reason = r"failed: exit 3: mim_jax: update 5 \| diverged (seed 1)"
    assert row[0] == f"50.00; {reason}" and row[1] == "200; failed (seed 1)"
    assert row[3] == "70.00; not run (seed 1)"
    assert comparison.table()["b"][0] == "51.00 ± 6.35"  # the rest went on
    with (comparison.root / "table.csv").open() as file:
        failed = next(row for row in csv.DictReader(file) if (row["arm"], row["seed"]) == ("z", "1"))
    assert failed["pretrain"] == "failed" and failed["probe"] == "not run" and "diverged" in failed["failure"]
    page = (comparison.root / "table.html").read_text()
    assert "<small>failed (seed 1)</small>" in page
    assert "<li>z, seed 1, pretrain: exit 3: mim_jax: update 5 | diverged</li>" in page
    comparison.order({})
    assert comparison.run("--config.only=z,b") == 0
    assert comparison.table()["z"][0] == "50.50 ± 6.35"
    assert comparison.starts() == Counter(
        {f"{arm}-{seed}/{stage}": 1 for arm in "zb" for seed in (0, 1) for stage in (PRETRAIN, "probe")}
    ) + Counter({"z-1/pretrain": 1})


def test_damaged_run_fails_its_cell_only(comparison: Comparison) -> None:
    """Files of a run that cannot be read, and a file in the place of a cell's directory."""
    comparison.order({"z-0/pretrain": {"damage": "metrics.jsonl"}, "b-0/probe": {"damage": "per_image.json"}})
    assert comparison.run("--config.only=z,b", "--config.seeds=(0,)") == 1
    table = comparison.table()
    assert table["z"][0].startswith("failed: ") and "metrics.jsonl is damaged in line 2" in table["z"][0]
    assert table["b"][0] == "50.50"
    assert "per_image.json is damaged" in table["b"][3]
    comparison.order({})
    (comparison.root / "z-1").write_text("mine")
    assert comparison.run("--config.only=z,b") == 1
    table = comparison.table()
    assert table["z"][0].startswith("50.00; failed: ") and table["b"][0] == "51.00 ± 6.35"
    assert (comparison.root / "z-1").read_text() == "mine"


def test_asked_to_stop_and_started_again(comparison: Comparison) -> None:
    """SIGTERM while a stage runs: it may save, the table is there, nothing finished runs again."""
    comparison.order({"z-0/probe": {"sleep": 60}})
    process = comparison.in_a_process("--config.only=z,b")
    comparison.wait_for("start z-0/probe")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 75 and "asked z-0/probe" in comparison.events()
    assert "stopped  z, seed 0, probe" in out
    assert comparison.table()["z"] == [
        "50.00; waiting (seed 1)",
        "200",
        "5",
        "waiting (seed 0)",
        "– (seed 0)",
    ]
    assert comparison.table()["b"] == ["waiting"]  # and four empty ones
    page = (comparison.root / "table.html").read_text()
    shown = page.partition("<h1>")[2].partition("<p>Qualities")[0]
    assert shown.count("waiting") == 1 + 2 * 2 + 2  # the state; b in both tables, marked; two notes of z
    assert "1 of 8 stages are done; 7 waiting. The same command resumes." in page
    comparison.order({})
    assert comparison.run("--config.only=z,b") == 0
    assert comparison.starts().pop("z-0/probe") == 2
    assert sum(comparison.starts().values()) == 9


def test_killed_and_started_again(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 of the comparison: what it left at work ends before the new start touches that run."""
    comparison.order({"z-0/probe": {"sleep": 2}})
    process = comparison.in_a_process("--config.only=z,b")
    comparison.wait_for("start z-0/probe")
    process.kill()
    process.communicate()
    comparison.order({})
    assert comparison.run("--config.only=z,b") == 0
    assert "is still at work" in capsys.readouterr().out
    assert comparison.starts().pop("z-0/probe") == 2 and sum(comparison.starts().values()) == 9
    mine = [event for event in comparison.events() if event.endswith("z-0/probe")]
    assert mine == ["start z-0/probe", "end z-0/probe"] * 2
    assert comparison.table()["z"][3] == "70.50 ± 6.35"


def test_other_settings_are_refused(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    only = ("--config.only=z", "--config.seeds=(0,)")
    assert comparison.run(*only) == 0
    before = comparison.events()
    assert comparison.run(*only, "--config.evaluate_shared.probe.optim.lr=0.8") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "z, seed 0, probe was run with other settings" in error
    assert "config.optim.lr: 0.7 -> 0.8" in error and "another directory" in error
    assert comparison.events() == before


def test_seconds_become_steps(comparison: Comparison) -> None:
    """10 s at 200 images/s in batches of 16 are 125 steps = 3.125 epochs of 640: the warm-up shrinks like the run."""
    arguments = ("--config.only=z", "--config.budget=seconds", "--config.seconds=10", "--config.seeds=(0,)")
    assert comparison.run(*arguments) == 0
    assert list(comparison.starts()) == ["calibration/z", "z-0/pretrain", "z-0/probe"]
    trial = json.loads((comparison.root / "results/z-calibration.json").read_text())
    assert trial["config"]["schedule.steps"] == 100 and trial["values"]["perf/images_per_sec"] == SPEED
    config = json.loads((comparison.root / "results/z-0-pretrain.json").read_text())["config"]
    assert config["schedule.steps"] == 125 and config["method.start"] == 1  # 3 * 3.125 / 20, at least 1
    assert config["schedule.warmup_epochs"] == pytest.approx(2 * 3.125 / 20)
    assert "z 125 steps (200.0 images/s)" in (comparison.root / "table.md").read_text()
    assert comparison.run(*arguments) == 0
    assert len(comparison.starts()) == sum(comparison.starts().values()) == 3


def test_failed_calibration(comparison: Comparison) -> None:
    """Its arm is shown as failed and the others go on; an arm with a length of its own needs none."""
    comparison.order({"calibration/z": {"exit": 2, "words": "mim_jax: no"}})
    own = f"--config.arms.own={comparison.folder / 'run.py'},optim.lr=0.1,schedule.steps=1"
    arguments = ("--config.only=z,own", own, "--config.budget=seconds", "--config.seeds=(0,)")
    assert comparison.run(*arguments) == 1
    rows = comparison.table()
    assert rows["z"][0] == "failed: calibration: exit 2: mim_jax: no" and rows["own"][:2] == [
        "10.00",
        "–",
    ]
    assert "outside the budget: own" in (comparison.root / "table.md").read_text()


def test_jobs_and_runs_stopped_by_others(comparison: Comparison) -> None:
    """The first cell ends only once the second has begun; one that exits with 75 unasked is started again."""
    comparison.order({"z-0/pretrain": {"until": "b-0/pretrain"}, "b-0/pretrain": {"again": 1}})
    assert comparison.run("--jobs=2", "--config.only=z,b", "--config.seeds=(0,)") == 0
    assert comparison.starts() == {"z-0/pretrain": 1, "z-0/probe": 1, "b-0/pretrain": 2, "b-0/probe": 1}
    cores = {path.name: json.loads(path.read_text()) for path in comparison.folder.glob("cores-*")}
    own = [set(cores[f"cores-{arm}-0-{PRETRAIN}"]) for arm in "zb"]
    all_cores = os.sched_getaffinity(0)  # ours, as before
    assert own[0] | own[1] == all_cores
    assert not own[0] & own[1] or len(all_cores) == 1  # a machine of one core cannot be divided


@pytest.mark.parametrize(
    ("cores", "num_jobs", "expected"),
    [
        (5, 2, [{0, 1}, {2, 3, 4}]),
        (4, 4, [{0}, {1}, {2}, {3}]),
        (8, 1, [None]),
        (2, 3, [None, None, None]),
    ],
)
def test_cores_are_split(
    cores: int, num_jobs: int, expected: list[set[int] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert split_cores(num_jobs) == expected
