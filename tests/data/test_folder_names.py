"""Folders of classes with names that are legitimate and odd: they are shown, and nothing fails on them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mim_jax.data import open_dataset
from mim_jax.training.monitoring.report import draw_first_batch
from mim_jax.transfer.confusion import draw_confusion

NAMES = [b"price_$5_to_$10", rb"a_$\frac{1}{$", b"caf\xe9", b"line\nbreak", "写真".encode()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("odd")
    for name in NAMES:
        folder = os.path.join(os.fsencode(root), name)
        try:
            os.mkdir(folder)
        except OSError:  # macOS keeps no names that are not UTF-8
            continue
        with open(os.path.join(folder, b"a.png"), "wb") as file:
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, format="PNG")
    return open_dataset(f"folder:{root}", "train")


def test_names_can_be_written_and_are_one_line(dataset) -> None:
    for name in dataset.class_names:
        assert name.encode("utf-8") and name.isprintable()
    assert {"price_$5_to_$10", "line\\nbreak", "写真"} <= set(dataset.class_names)
    assert any("\\xe9" in name for name in dataset.class_names) or os.uname().sysname == "Darwin"
    assert dataset[0].annotation.index in range(len(dataset.class_names))


def test_they_are_drawn_as_they_are(dataset, tmp_path: Path) -> None:
    """No name is read as a formula: matplotlib would fail on half of one."""
    names = dataset.class_names
    count = len(names)
    batch = {"image": np.zeros((count, 8, 8, 3), np.uint8), "label": np.arange(count)}
    draw_first_batch(tmp_path / "first.png", batch, names)
    draw_confusion(tmp_path / "confusion.png", np.eye(count), np.arange(count), names)
    assert (tmp_path / "first.png").stat().st_size and (tmp_path / "confusion.png").stat().st_size
