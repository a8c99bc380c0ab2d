"""The task `analyze` from the directories of finished runs to its files; and what users get wrong."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_config

from mim_jax.analysis.job import run
from mim_jax.analysis.runs import check_job, short_names
from mim_jax.config.check import ConfigError, check, to_dict
from mim_jax.config.files import load, override
from mim_jax.config.schema import Config, resolved
from mim_jax.data import DataError, evenly_spaced, open_dataset
from mim_jax.main import TASKS
from mim_jax.methods import build_method
from mim_jax.storage import write_json
from mim_jax.training.checkpoints import CheckpointError, Checkpoints

NETWORK = {"model.depth": 4, "data.source": "synthetic:100:16", "augment.eval_crop": "none"}
SWIN = {
    "model__variant": "swinv2_mu", "model__depth": None, "model__patch": 2, "model__window": 3, "model__positions": "none",
    "model__relative_bias": "none", "model__qkv_bias": "qkv", "model__layer_scale": None, "model__cls": False,
    "data__batch_size": 16,
}  # fmt: skip

KEPT = ("config.json", "mim_jax.json", "versions.json")
"""In every directory of a task."""


def finished(folder: Path, file: str, **overrides: Any) -> Path:
    """A run's directory as the trainer leaves it, with random weights."""
    options = {**NETWORK, **{key.replace("__", "."): value for key, value in overrides.items()}}
    if file == "supervised":
        options["method.num_classes"] = 4
    config = small_config(file, options)
    shapes = jax.eval_shape(build_method(config).init_params, jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * random.normal(size=x.shape), jnp.float32), shapes)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", to_dict(config))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(resolved(config.schedule.steps), {"params": params})
    return folder


def analysis(*runs: Path | str, **options: Any) -> Config:
    """The configuration of an analysis."""
    values = {"runs": ",".join(map(str, runs)), "job.images": 20, "job.cka_batch": 8, "job.pictures": 2}
    return check(override(load("configs/analyze.py"), {**values, **options}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "simmim": finished(folder / "simmim" / "run", "simmim"),
        "supervised": finished(folder / "supervised" / "run", "supervised"),
        "small": finished(
            folder / "small", "simmim", model__image_size=8, data__source="synthetic:100:8", method__unit=1
        ),
        "swin": finished(folder / "swin", "simmim", **SWIN),
        "started": finished(folder / "started", "simmim", schedule__epochs=4.0),
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_runs_side_by_side(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = analysis(runs["simmim"], runs["supervised"])
    checker, runner = TASKS[config.task]
    checker(config)
    assert runner(config, tmp_path / "out") == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"layers.png", "cka.png", "attention-1.png", "attention-2.png", "rollout.png"}
    assert files == {*KEPT, "report.html", "heads.csv", "layers.csv", "cka.csv", *pictures}
    heads, layers, cka = (rows(tmp_path / "out" / f"{name}.csv") for name in ("heads", "layers", "cka"))
    assert [(row["run"], row["layer"], row["head"]) for row in heads] == [
        (name, str(layer), str(head))
        for name in ("simmim", "supervised")
        for layer in (1, 2, 3, 4)
        for head in (1, 2)
    ]
    for row in layers:
        own = [h for h in heads if (h["run"], h["layer"]) == (row["run"], row["layer"])]
        for mean, each in (
            ("distance_mean_px", "distance_drop_px"), ("entropy_mean_nats", "entropy_nats"),
            ("kl_nats", "kl_as_first_nats"), ("kl_nats", "kl_as_second_nats"),
        ):  # fmt: skip
            values = [float(h[each]) for h in own]
            assert float(row[mean]) == pytest.approx(np.mean(values), rel=1e-4)
        assert float(row["distance_uniform_px"]) == pytest.approx(4 * 2.008015, rel=1e-5)
    page = (tmp_path / "out" / "report.html").read_text()
    shown = re.sub(r"base64,[^\"]+", "", page).partition("<details>")[0]
    for words in ("CLS as a key is left out", "all patch tokens of an image", "unbiased, over minibatches",
                  "masked pre-training", "supervised from scratch", "distance (pixels)", "≥ 0.5"):  # fmt: skip
        assert words in shown, words
    assert not re.findall(r"\((mim|px)\)|: (drop|flatten|minibatch)\b|[<>]=", shown)
    assert re.search(r"The marked patch of one image \(grating \d\)", shown)  # its class
    assert shown.index("<th>verdict</th>") < shown.index("<th>statement</th>")  # seen on a narrow screen
    assert len(cka) == 32 and all(row["cka"] == "1" for row in cka if row["layer_a"] == row["layer_b"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "CKA used 16 of the 20 images" in page and "different images" not in page
    said = capsys.readouterr().out
    for claim in ("C1  masked", "C1  supervised", "C2  masked", "C2  supervised", "C6  layers of masked"):
        assert len(re.findall(rf"{claim}.*: (SEEN|NOT SEEN|CANNOT SAY)", said)) == 1, claim
    assert json.loads((tmp_path / "out" / "config.json").read_text())["task"] == "analyze"


@pytest.mark.slow
def test_a_swin_on_given_images(runs: dict[str, Path], tmp_path: Path) -> None:
    """Maps of 8 x 8 and 4 x 4 in windows of 3: shifts, padding, stages of different widths and heads."""
    options: dict[str, Any] = {
        "job.units": "patch", "job.cls": "renorm", "job.jensen_shannon": True, "job.kinds": "other", "job.step": 24,
        "data.source": "synthetic:100:16",
    }  # fmt: skip
    assert run(analysis(runs["swin"], **options), tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *KEPT, "report.html", "heads.csv", "layers.csv", "cka.csv", "layers.png", "cka.png",
    }  # fmt: skip
    found, heads = (rows(tmp_path / "out" / f"{name}.csv") for name in ("layers", "heads"))
    assert {row["kind"] for row in found} == {"other"} and [row["heads"] for row in found] == list("2244")
    for row in found:
        own = [h for h in heads if h["layer"] == row["layer"]]
        for mean, each in (
            ("distance_mean_patch", "distance_renorm_patch"),
            ("jensen_shannon_nats", "jensen_shannon_nats"),
        ):
            assert float(row[mean]) == pytest.approx(np.mean([float(h[each]) for h in own]), rel=1e-4)
        assert 0 < float(row["distance_mean_patch"]) < 2 * float(row["distance_uniform_patch"])
        assert 0 < float(row["entropy_mean_nats"]) < float(row["entropy_largest_nats"]) <= np.log(9) + 1e-5
        assert 0 < float(row["jensen_shannon_nats"]) < np.log(2)


def test_names_are_what_differs() -> None:
    assert list(short_names("/a/mae-0/run, /a/simmim-0/run")) == ["mae-0", "simmim-0"]
    assert list(short_names("/a/one/x/run,/a/two/run")) == ["one/x", "two"]
    assert list(short_names("/a/one,/a/one/deeper")) == ["one", "one/deeper"]
    assert list(short_names("/a/one")) == ["one"]


def test_the_sample_is_spread_over_the_dataset() -> None:
    dataset = open_dataset("synthetic:100:16", "test")
    sample = evenly_spaced(dataset, 10)
    assert len(sample) == 10
    for at in (0, 1, 9):
        expected = dataset[at * len(dataset) // 10].image.pixels()
        np.testing.assert_array_equal(sample[at].image.pixels(), expected)
    assert len(evenly_spaced(dataset, 1000)) == len(dataset)


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ([], {}, "names no run"),
        (["nowhere"], {}, "holds no run of ours"),
        (["simmim", "simmim"], {}, "twice"),
        (["simmim", "small"], {}, r"different resolutions \(simmim/run 16x16, small 8x8 px\)"),
        (["started"], {}, "is not finished: 24 of its 48 steps"),
        (["simmim"], {"job.step": 7}, "7"),
        (["simmim"], {"job.kinds": "mim,mim"}, "2 kinds for 1 runs"),
        (["simmim"], {"job.kinds": "masked"}, "must be one of mim, supervised, other"),
        (["simmim"], {"job.units": "metres"}, "config.job.units is 'metres'"),
        (["simmim"], {"job.cka": "biased"}, "take pool or cls"),
        (["simmim"], {"job.images": 3}, "config.job.images=3 must be at least 4"),
        (["simmim"], {"job.cka_features": "tokens", "job.cka_batch": 400, "job.images": 400, "data.source": "synthetic:4000:16"}, "take at most 256"),
        (["simmim"], {"data.source": "folder:/nowhere"}, "/nowhere"),
        (["weights.safetensors"], {}, "weights.safetensors"),
    ],
)  # fmt: skip
def test_one_sentence(
    runs: dict[str, Path], tmp_path: Path, names: list[str], options: dict[str, Any], says: str
) -> None:
    text = (runs["started"] / "config.json").read_text()
    (runs["started"] / "config.json").write_text(text.replace('"steps": 24', '"steps": 48'))
    with pytest.raises((ConfigError, DataError, CheckpointError), match=says) as caught:
        config = analysis(*(runs.get(name, tmp_path / name) for name in names), **options)
        check_job(config)
        run(config, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
