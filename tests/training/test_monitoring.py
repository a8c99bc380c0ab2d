"""What a run shows while it goes on and after: metric writers, progress, MFU, the first batch, the report, a finished run."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tiny import STEPS, tiny_config, tiny_run

from mim_jax.config.check import ConfigError
from mim_jax.progress import log
from mim_jax.tasks import train
from mim_jax.training.monitoring import monitor
from mim_jax.training.monitoring.clu_writers import ScalarWriter
from mim_jax.training.monitoring.goodput import WallTime, describe_goodput, shares
from mim_jax.training.monitoring.metric_writers import (
    UNIX_TIME,
    open_metric_writer,
    read_metrics,
    read_sessions,
)
from mim_jax.training.monitoring.monitor import Diverged, MetricMonitor, StepBar
from mim_jax.training.monitoring.peak_flops import peak_flops
from mim_jax.training.monitoring.report import draw_first_batch, write_report
from mim_jax.training.monitoring.run_info import (
    MAX_LISTED_IMAGES,
    format_bad_images,
    record_bad_images,
    wall_time,
)

FAKE_WANDB = """
import json, os
def init(**given):
    return Run(given)
class Run:
    def __init__(self, given):
        self.path = os.path.join(given["dir"], "fake.jsonl")
        lines = open(self.path).read().splitlines() if os.path.exists(self.path) else []
        steps = [json.loads(line)["step"] for line in lines if "step" in json.loads(line)]
        self.step = steps[-1] + 1 if steps else 0
        self.put({"init": {k: given[k] for k in ("project", "id", "resume")}, "seed": given["config"]["seed"]})
    def put(self, line):
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\\n")
    def log(self, values, step):
        self.put({"step": step, **values})
    def finish(self):
        self.put({"finished": True})
"""


def scalars(directory: Path) -> list[tuple[int, str, float, float]]:
    """(step, key, value, wall time) of all event files, in the order they were written."""
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.append((event.step, value.tag, value.tensor.float_val[0], event.wall_time))
    return found


def killed_and_resumed(config: Any, workdir: Path) -> list[dict]:
    """Six lines, of which a kill leaves checkpoint 3: the second session logs 4 to 6 again. The metrics at the end."""
    with open_metric_writer(config, workdir, 0, WallTime(time.time())) as writer:
        for step in range(1, 7):
            writer.write_scalars(step, {"train/loss": 10.0 - step})
    with open_metric_writer(config, workdir, 3, WallTime(time.time())) as writer:
        for step in range(4, 8):
            writer.write_scalars(step, {"train/loss": 10.0 - step})
    return read_metrics(workdir / "metrics.jsonl")


def test_tensorboard_holds_the_history_once(tmp_path: Path) -> None:
    records = killed_and_resumed(small_config(), tmp_path)
    assert [record["step"] for record in records] == list(range(1, 8))
    expected = [(record["step"], "train/loss", record["train/loss"], record[UNIX_TIME]) for record in records]
    assert scalars(tmp_path / "tensorboard") == expected


def test_a_tensorboard_that_is_watching_sees_no_point_twice(tmp_path: Path) -> None:
    config = small_config()
    with open_metric_writer(config, tmp_path, 0, WallTime(time.time())) as writer:
        for step in range(1, 7):
            writer.write_scalars(step, {"train/loss": 10.0 - step})
    watching = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(watching.Scalars("train/loss")) == 6
    with open_metric_writer(config, tmp_path, 3, WallTime(time.time())) as writer:
        for step in range(4, 8):
            writer.write_scalars(step, {"train/loss": 10.0 - step})
    assert [point.step for point in watching.Reload().Scalars("train/loss")] == list(range(1, 8))


def test_tensorboard_has_the_keys_of_the_metrics(finished_run: Path) -> None:
    found = {(step, key) for step, key, _, _ in scalars(finished_run / "tensorboard")}
    records = read_metrics(finished_run / "metrics.jsonl")
    assert found == {(r["step"], key) for r in records for key in r if key not in ("step", UNIX_TIME)}
    assert (STEPS, "train/loss") in found and (STEPS, "eval/loss") in found


def test_tensorboard_can_be_switched_off(tmp_path: Path) -> None:
    killed_and_resumed(small_config(overrides={"log.tensorboard": False}), tmp_path)
    assert not (tmp_path / "tensorboard").exists()


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield
    sys.modules.pop("wandb", None)


def test_wandb_resumes_the_same_run(fake_wandb: None, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    killed_and_resumed(small_config(overrides={"log.wandb": "masks"}), workdir)
    lines = [json.loads(line) for line in (workdir / "fake.jsonl").read_text().splitlines()]
    started = [line["init"] for line in lines if "init" in line]
    assert len(started) == 2 and started[0] == started[1]
    assert started[0] == {
        "project": "masks",
        "id": json.loads((workdir / "wandb.json").read_text())["id"],
        "resume": "allow",
    }
    logged = [line for line in lines if "step" in line]
    assert [line["step"] for line in logged] == list(range(1, 8))  # 4 to 6 were there already
    assert logged[-1] == {"step": 7, "train/loss": 3.0}
    assert sum("finished" in line for line in lines) == 2


def test_wandb_that_does_not_start_is_one_sentence(fake_wandb: None, tmp_path: Path) -> None:
    (tmp_path / "modules" / "wandb.py").write_text("def init(**given): raise RuntimeError('no\\naccount')")
    with pytest.raises(ConfigError, match=r"config.log.wandb=masks: W&B did not start \(no account\)"):
        killed_and_resumed(small_config(overrides={"log.wandb": "masks"}), tmp_path / "run")


def test_wandb_missing_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails, as where it is not installed
    with pytest.raises(ConfigError, match=r"config.log.wandb=masks needs .* pip install wandb") as caught:
        train.run(tiny_config(log__wandb="masks"), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def session() -> str:
        bar = StepBar(0, 10)
        for done in range(1, 11):
            bar.update(done, 0.5)
            log(f"line {done}")
        bar.close()
        return capsys.readouterr().out

    plain = "".join(f"line {done}\n" for done in range(1, 11))
    assert session() == plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = session()
    assert "10" in shown and "loss 0.5000" in shown and "step/s" in shown
    assert [line for line in re.split(r"[\r\n]", shown) if line.startswith("line")] == plain.splitlines()


@pytest.mark.parametrize(
    ("kind", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 80GB HBM3", "float32", 494.7),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5p", "bfloat16", 459),
        ("TPU v6 lite", "bfloat16", 918),
        ("TPU v4 lite", "bfloat16", None),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("NVIDIA L40", "bfloat16", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks(kind: str, dtype: str, tera: float | None) -> None:
    assert peak_flops(kind, dtype) == (None if tera is None else tera * 1e12)


class Recorder(ScalarWriter):
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def write_scalars(self, step: int, scalars: Any) -> None:
        self.lines.append((step, dict(scalars)))

    def close(self) -> None: ...


def watched(flops: float) -> dict[str, float]:
    """The metrics of an update that a MetricMonitor logs."""
    recorder = Recorder()
    config = small_config(overrides={"log.every_steps": 1})
    loader: Any = SimpleNamespace(stall_seconds=0.0)
    with MetricMonitor(
        config, recorder, loader, 0, None, lambda *_: Diverged(), WallTime(time.time())
    ) as seen:
        seen.flops = flops
        seen.throughput.start()
        time.sleep(0.01)
        values = {name: jnp.asarray(1.0) for name in ("loss", "grad_norm", "lr")}
        seen.update(1, values, drain=True)
    return recorder.lines[0][1]


def test_what_a_writer_of_scalars_cannot_write_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="Recorder writes scalars, no images"):
        Recorder().write_images(0, {"grid": np.zeros((1, 2, 2, 3))})


def test_mfu_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "perf/mfu" not in watched(2e6)  # a CPU
    monkeypatch.setattr(monitor, "peak_flops", lambda kind, dtype: 1e9)
    values = watched(2e6)
    assert values["perf/mfu"] == pytest.approx(
        2e6 * values["perf/images_per_sec"] / (1e9 * 8)
    )  # eight devices
    assert "perf/mfu" not in watched(0.0)


def test_first_batch_is_drawn_as_the_network_gets_it(tmp_path: Path) -> None:
    image = np.zeros((2, 16, 16, 3), np.uint8)
    image[:, :, :8, 0] = 255  # red on the left
    batch = {"image": image, "flip": np.array([False, True]), "label": np.array([0, -1], np.int32)}
    draw_first_batch(tmp_path / "first.png", batch, ["cat"])
    drawn = np.asarray(Image.open(tmp_path / "first.png").convert("RGB")).astype(int)
    row = drawn[drawn.shape[0] // 3]
    red = np.flatnonzero((row[:, 0] > 200) & (row[:, 1] < 50)) / len(row)
    assert 0.02 < red.min() < 0.1 and 0.9 < red.max() < 0.98  # outer halves: the second is mirrored
    assert not np.any((red > 0.27) & (red < 0.73))
    draw_first_batch(
        tmp_path / "plain.png", {"image": image, "label": batch["label"]}, []
    )  # no flips, no names


def test_a_finished_run_left_its_pictures_and_information(finished_run: Path) -> None:
    with Image.open(finished_run / "first_batch.png") as picture:
        assert min(picture.size) > 100
    overview = (finished_run / "parameters.txt").read_text()
    assert "patch_embed" in overview and re.search(r"Total: [\d,]+ -- [\d,]+ bytes", overview)
    page = (finished_run / "report.html").read_text()
    assert "patch_embed" in page and "<summary>Parameters" in page
    drawn = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)"', page)
    assert {"loss", "token accuracy", "gradient norm", "First training batch"} <= set(drawn)
    assert [drawn.count(name) for name in ("original", "order", "predicted tokens")] == [8, 8, 8]
    assert len(set(re.findall(r'<td class="name">(\d)</td>', page))) == 8  # digits, of eight classes
    assert not re.search(r"(src|href)=.?(https?:)?//", page)  # opens offline
    for fact in (
        "fingerprint",
        "wall time",
        "in 1 session",
        f"in {STEPS} steps",
        "GFLOP",
        "jaxlib",
        "devices",
        "held-out loss",
    ):
        assert fact in page, fact
    assert "&#34;vocabulary&#34;: 16" in page and "Bad images" not in page


def test_the_same_command_shows_a_finished_run(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {
        p: p.stat().st_mtime_ns for p in finished_run.rglob("*") if p.is_file() and p.suffix not in (".json",)
    }
    capsys.readouterr()
    assert tiny_run(finished_run) == 0
    out = capsys.readouterr().out
    assert f"this run is finished: {STEPS} steps" in out and "held-out loss" in out
    assert (
        str(finished_run / "report.html") in out
        and "eval at" not in out
        and "step " not in out.split("finished")[1]
    )
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert len(read_sessions(finished_run)) == 1  # looking at a result is no session


def test_sessions_add_up(tmp_path: Path) -> None:
    (tmp_path / "sessions.json").write_text(
        json.dumps([{"started": 1.0, "first_step": 0, "last_step": 3, "seconds": 3600.0}])
    )
    with open_metric_writer(small_config(), tmp_path, 3, WallTime(time.time() - 65)) as writer:
        writer.write_scalars(4, {"train/loss": 1.0})
    assert re.match(r"1:01:0[5-7] \(h:mm:ss\) in 2 sessions", wall_time(tmp_path))
    assert [s["last_step"] for s in read_sessions(tmp_path)] == [3, 4]


def test_goodput_counts_what_a_kill_lost() -> None:
    """10 steps in 20 s, of which the next session repeats 4: 8 s are lost, and the times of both add up."""
    first = {"seconds": 40.0, "first_step": 0, "last_step": 10, "parts": {"steps": 20.0, "compilation": 5.0}}
    second = {"seconds": 60.0, "first_step": 6, "last_step": 30, "parts": {"steps": 48.0, "evaluation": 6.0}}
    found = shares([first, second])
    assert found["steps"] == pytest.approx(0.60) and found["lost work"] == pytest.approx(0.08)
    assert found["start and end"] == pytest.approx(0.21) and sum(found.values()) == pytest.approx(1.0)
    told = describe_goodput([first, second])
    assert told.startswith(
        "steps 60.0 %, start and end 21.0 %, lost work 8.0 %, evaluation 6.0 %, compilation 5.0 %"
    )
    assert shares([first, {"seconds": 1.0}]) == {} == shares([])  # a run of an earlier version


def test_where_the_time_of_a_run_went(finished_run: Path) -> None:
    (session,) = read_sessions(finished_run)
    assert (
        session["parts"]["compilation"] > 0
        and session["parts"]["evaluation"] > 0
        and session["parts"]["checkpoints"] > 0
    )
    assert sum(session["parts"].values()) < session["seconds"]
    lines = [line for line in read_metrics(finished_run / "metrics.jsonl") if "perf/goodput" in line]
    assert (
        all(0 <= line["perf/goodput"] < 1 and line["perf/model_tflops_per_sec"] > 0 for line in lines)
        and lines
    )
    assert "goodput" in (finished_run / "report.html").read_text()


def test_bad_images_are_counted_listed_and_remembered(tmp_path: Path) -> None:
    first = SimpleNamespace(bad={f"a{i:02d}.jpg": "it is cut short" for i in range(15)})
    second = SimpleNamespace(bad={f"b{i:02d}.jpg": "<no> image" for i in range(10)})
    record_bad_images(tmp_path, [first])  # type: ignore[list-item]
    bad = record_bad_images(tmp_path, [second, SimpleNamespace()])  # type: ignore[list-item]
    assert len(bad) == 25
    text = format_bad_images(bad)
    assert text.startswith("25 images") and len(text.splitlines()) == 22 and "and 5 more" in text
    write_report(
        tmp_path / "report.html", title="t", info={}, parameters="", records=[{"step": 1, "train/loss": 1.0}], rows=[],
        image_grid=None, figures=(("none", "", tmp_path / "none.png"),), bad=bad, config_text="{}",
    )  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert "25 images could not be read" in page and "&lt;no&gt; image" in page and "And 5 more" in page
    assert page.count('class="path"') == MAX_LISTED_IMAGES
