"""What a run reads back from its own directory: damage is named, and nothing after it is lost unseen."""

import json
from pathlib import Path

import pytest
from etils import epath

from mim_jax.compare.results import ResultStore
from mim_jax.config.check import ConfigError
from mim_jax.training.monitoring.metric_writers import read_metrics, read_sessions, run_id
from mim_jax.training.monitoring.run_info import record_bad_images
from mim_jax.transfer.per_image import read_correct

LINE = '{"step": 1, "train/loss": 2.5}\n'


def test_metrics_that_are_whole(tmp_path: Path) -> None:
    path = epath.Path(tmp_path / "metrics.jsonl")
    assert read_metrics(path) == []
    path.write_text(LINE + "\n" + '{"step": 2, "eval/x": NaN}\n')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("cut", ['{"step": 2, "tra', '{"step": 2', "{", "\0\0\0"])
def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, cut: str) -> None:
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text(LINE + cut)
    assert len(read_metrics(path)) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"step": 2, "tra', r"line 2 \(it is not JSON"),
        ('{"train/loss": 1.0}', r"line 2 \(it lacks step\)"),
        ('{"step": "two"}', r'line 2 \(step is "two", not a whole number\)'),
        ('{"step": 2, "train/loss": "low"}', r'line 2 \(train/loss is "low", not a number\)'),
        ("7", r"line 2 \(it is 7, not an object\)"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: str, says: str) -> None:
    """Before, reading ended there in silence, and a resumed run wrote the file without all that followed."""
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text(LINE + line + "\n" + LINE)
    with pytest.raises(ConfigError, match=says):
        read_metrics(path)


def test_sessions_bad_images_and_wandb(tmp_path: Path) -> None:
    place = epath.Path(tmp_path)
    assert read_sessions(place) == [] and read_correct(place) == {} and record_bad_images(place, ()) == {}
    (place / "sessions.json").write_text('[{"seconds": -1.0}]')
    with pytest.raises(ConfigError, match=r"sessions\.json is damaged \(0\.seconds is -1\.0, not in 0"):
        read_sessions(place)
    (place / "bad_images.json").write_text('{"a.jpg": 3}')
    with pytest.raises(ConfigError, match=r"bad_images\.json is damaged \(a\.jpg is 3, not a text\)"):
        record_bad_images(place, ())
    (place / "per_image.json").write_text('{"eval/top1": "0120"}')
    with pytest.raises(ConfigError, match=r"per_image\.json is damaged \(it holds other characters"):
        read_correct(place)
    (place / "wandb.json").write_text('{"id": "../x"}')
    with pytest.raises(ConfigError, match=r"wandb\.json is damaged"):
        run_id(place)


def test_a_result_of_a_comparison(tmp_path: Path) -> None:
    whole = {
        "stage": "pretrain",
        "status": "done",
        "command": "x",
        "config": {},
        "log": "l",
        "values": {"a": 1.0},
    }
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert ResultStore(tmp_path).is_done("a")
    for change, says in (
        ({"status": "almost"}, "status is 'almost'"),
        ({"values": {"a": "x"}}, "values.a is"),
        ({"more": 1}, "more"),
    ):
        (tmp_path / "a.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ConfigError, match=says):
            ResultStore(tmp_path)
