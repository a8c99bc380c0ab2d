"""What the report of a run shows: metrics in words, curves with baselines, examples with the names of their classes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim_jax.data import open_dataset, over_classes
from mim_jax.data.datasets.base import ArrayDataset
from mim_jax.methods import ImageGrid
from mim_jax.training.monitoring.curves import FREE, PART, SHARE, SIZE, draw, limits, panels
from mim_jax.training.monitoring.report import write_report
from mim_jax.training.monitoring.results_table import (
    BASELINES,
    TERMS,
    format_metrics,
    format_rows,
    result_rows,
)

MAPET = {"loss": 2.6, "token_accuracy": 0.35, "uniform_loss": 4.2, "position_frequency_loss": 2.5,
         "position_frequency_token_accuracy": 0.36, "other_images_loss": 2.61, "other_images_token_accuracy": 0.35,
         "knn_top1": 0.24, "knn_top1_stderr": 0.02, "knn_raw_pixels_top1": 0.96, "commonest_class_top1": 0.1,
         "heldout_seconds": 1.0}  # fmt: skip
ZOOM = {"loss": 0.9, "centre": 0.8, "edge": 1.1, "constant_loss": 1.0, "constant_centre": 1.02, "constant_edge": 0.98,
        "other_images_loss": 1.3, "other_images_centre": 1.2, "other_images_edge": 1.4}  # fmt: skip
CLASSIFIER = {"loss": 0.7, "top1": 0.8, "top5": 0.99, "mean_per_class": 0.79, "map_11_point": 0.8,
              "commonest_class_top1": 0.12}  # fmt: skip


def records_of(final: dict[str, float]) -> list[dict[str, Any]]:
    """A run of 40 steps: step 0 with its baselines, one evaluation without, and the end."""
    held = {f"eval/{name}": value for name, value in final.items()}
    plain = {key: value for key, value in held.items() if key.split("/")[1] in TERMS}
    lines: list[dict[str, Any]] = [{"step": 0, **{key: 1.1 * value for key, value in held.items()}}]
    lines += [{"step": step, "train/loss": 4.0 - step / 20, "train/lr": 1e-3 * step, "train/grad_norm": 1.0 + step,
               "perf/images_per_sec": 200.0 + step, "perf/input_stall": 0.001 if step > 1 else 0.02, "perf/unix_time": 1e9}
              for step in range(1, 41)]  # fmt: skip
    return [*lines, {"step": 20, **plain}, {"step": 40, **held}]


def page_of(tmp_path: Path, records: list[dict[str, Any]], **more: Any) -> str:
    given: dict[str, Any] = {"title": "t", "info": {}, "parameters": "", "records": records, "rows": result_rows(records),
             "image_grid": None, "figures": (), "bad": {}, "config_text": "{}"}  # fmt: skip
    write_report(tmp_path / "report.html", **{**given, **more})
    return (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("final", [MAPET, ZOOM, CLASSIFIER])
def test_no_raw_key_is_shown(final: dict[str, float], tmp_path: Path) -> None:
    """Neither in the page, nor in the console's table and line."""
    records = records_of(final)
    page = re.sub(r"base64,[^\"]+", "", page_of(tmp_path, records))
    texts = (page.partition("<h1>")[2], format_rows(result_rows(records)), format_metrics(records[-1]))
    for text in texts:
        assert not re.findall(r"\b[a-z0-9]+_[a-z0-9_]+\b", text)
        assert "eval/" not in text and "nan" not in text


def test_every_baseline_stands_below_its_term() -> None:
    rows = [what for what, _, _ in result_rows(records_of(ZOOM))]
    constant, shuffled = (f"  {BASELINES[name][0]}" for name in ("constant", "other_images"))
    terms = [TERMS[name] for name in ("loss", "centre", "edge")]
    assert rows == [text for term in terms for text in (term, constant, shuffled)]
    rows = [what.strip() for what, _, _ in result_rows(records_of(MAPET))]
    assert rows[-3:] == ["k-NN top-1 accuracy", "k-NN on raw pixels", "always the commonest class"]
    rows = [what.strip() for what, _, _ in result_rows(records_of(CLASSIFIER))]
    assert rows[1:3] == ["held-out top-1 accuracy", "always the commonest class"]


@pytest.mark.slow
def test_a_column_without_numbers_is_left_out(tmp_path: Path) -> None:
    """A run whose step 0 was not evaluated has nothing to say of it."""
    records = [record for record in records_of(ZOOM) if record["step"]]
    assert "untrained" not in format_rows(result_rows(records)) and "trained" in format_rows(
        result_rows(records)
    )
    assert "untrained" not in page_of(tmp_path, records)
    assert '<th class="n">at the start</th>' in page_of(tmp_path, records_of(ZOOM), start="at the start")


def test_in_a_line() -> None:
    assert format_metrics(
        {"eval/loss": 1.0, "eval/constant_loss": 2.0, "eval/knn5_top1": 0.5, "eval/x_seconds": 3.0}
    ) == ("held-out loss 1.0000 (a constant 2.0000), k-NN top-1 accuracy, k = 5 0.5000")


def test_curves_have_their_baselines() -> None:
    """Labelled horizontal lines at what was measured last; the network of step 0 among them."""
    found = {panel.title: panel for panel in panels(records_of(MAPET))[0]}
    assert found["loss"].levels == {
        "all tokens alike": 4.2,
        "token frequencies": 2.5,
        "patches of other images": 2.61,
        "untrained": pytest.approx(2.86),
    }
    assert set(found["k-NN top-1 accuracy"].levels) == {"raw pixels", "commonest class", "untrained"}
    figure = draw(found["k-NN top-1 accuracy"])
    (axis,) = figure.axes
    level = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert level["raw pixels"] == [0.96, 0.96] and level["commonest class"] == [0.1, 0.1]
    (legend,) = [child for child in axis.get_children() if type(child).__name__ == "Legend"]
    assert {"held-out", "raw pixels", "commonest class"} <= {text.get_text() for text in legend.get_texts()}
    assert axis.get_ylim() == pytest.approx((0.0, 1.02))
    zoom = {panel.title: panel for panel in panels(records_of(ZOOM))[0]}
    assert zoom["loss of the ring around the centre"].levels["a constant"] == 0.98
    classifier = {panel.title: panel for panel in panels(records_of(CLASSIFIER))[0]}
    assert classifier["top-1 accuracy"].levels["commonest class"] == 0.12


@pytest.mark.parametrize(
    ("kind", "low", "high", "wanted"),
    [
        (SHARE, 0.235, 0.248, (0.0, 1.15 * 0.248)),  # not an axis from 0.234 to 0.249
        (SHARE, 0.0, 0.001, (0.0, 0.05)),
        (SHARE, 0.5, 0.99, (0.0, 1.02)),
        (PART, 0.0, 0.06, (0.0, 1.02)),
        (SIZE, 250.0, 260.0, (0.0, 286.0)),
        (SIZE, 0.0, 0.0, (0.0, 1.0)),
        (FREE, 2.000, 2.002, (1.9009, 2.1011)),  # a tenth of the loss, not the noise
        (FREE, 1.0, 3.0, (0.9, 3.1)),
        (FREE, 0.0, 1.0, (0.0, 1.1)),
        (FREE, -1.0, 1.0, (-1.1, 1.1)),
    ],
)
def test_axes_do_not_magnify_noise(kind: str, low: float, high: float, wanted: tuple[float, float]) -> None:
    assert limits(kind, low, high) == pytest.approx(wanted, rel=1e-3)


def test_flat_lines_and_single_points_are_sentences() -> None:
    records = [record for record in records_of(MAPET) if record["step"] != 20]
    for record in records:
        if "train/lr" in record:
            record["train/lr"] = 0.0015
        if record["step"] == 0:
            record.pop("eval/knn_top1")
    found, sentences = panels(records)
    assert "learning rate: 0.0015 throughout." in sentences
    assert "share of time waiting for data: 0.1 % to 2.0 %." in sentences
    assert "k-NN top-1 accuracy: 24.0 %, measured once, at step 40." in sentences
    assert {panel.title for panel in found} == {
        "loss",
        "token accuracy",
        "gradient norm",
        "images per second",
    }


def test_a_methods_own_metrics_get_a_curve() -> None:
    names = (
        "train/loss",
        "train/psnr_db",
        "eval/psnr_db",
        "eval/knn_seconds",
        "eval/knn_top1_stderr",
        "eval/uniform_loss",
    )
    found, _ = panels([{"step": step, **{name: float(step) for name in names}} for step in (1, 2)])
    assert {panel.title: list(panel.lines) for panel in found} == {
        "loss": ["training"],
        "psnr db": ["training", "held-out"],
    }


def test_examples_have_columns_and_class_names(tmp_path: Path) -> None:
    image = np.zeros((3, 8, 8, 3), np.uint8)
    picture = ImageGrid({"masked input": image, "prediction": image + 1}, "Held-out images.")
    page = page_of(tmp_path, [], image_grid=picture, names=["cat", "price_$5_to_$10", "<b>"])
    assert re.findall(r"<th>([^<]*)</th>", page) == ["masked input", "prediction"]
    assert re.findall(r'class="name">([^<]*)<', page.replace("<wbr>", "")) == [
        "class",
        "cat",
        "price_$5_to_$10",
        "&lt;b&gt;",
    ]
    assert page.count('alt="prediction" class="few"') == 3
    assert 'class="name"' not in page_of(tmp_path, [], image_grid=picture)  # no labels, no column


def test_examples_are_of_many_classes() -> None:
    """Of a dataset in class order the first eight are of one class."""
    digits = open_dataset("digits", "test")
    order = np.argsort(digits.labels, kind="stable")  # type: ignore[attr-defined]
    ordered = ArrayDataset("x", digits.images[order], digits.labels[order], digits.class_names, "ordered")  # type: ignore[attr-defined]
    few = over_classes(ordered, 8)
    labels = [few[n].annotation.index for n in range(8)]
    assert len(set(labels)) == 8 and len(set(ordered.labels[:8])) == 1
    two = ArrayDataset("x", ordered.images[:50], ordered.labels[:50], digits.class_names, "two classes")
    chosen = over_classes(two, 8)
    assert len(chosen) == 8 and len(set(chosen.numbers(range(8)).tolist())) == 8
    assert {chosen[n].annotation.index for n in range(8)} == set(two.labels.tolist())
    cyclic = ArrayDataset(
        "x",
        np.tile(digits.images[:10], (20, 1, 1, 1)),
        np.tile(np.arange(10, dtype=np.int32), 20),
        digits.class_names,
        "c",
    )  # type: ignore[attr-defined]
    assert len({over_classes(cyclic, 10)[n].annotation.index for n in range(10)}) == 10
    assert len(over_classes(two, 99)) == 50
