"""The loader's benchmark: each way does the same work, once for every image, and the table is what the clocks said."""

from types import SimpleNamespace

import numpy as np
import pytest

from mim_jax.data import bench_loader
from mim_jax.data.bench_loader import competitors, one, run_bare, run_loader, write_jpegs
from mim_jax.data.datasets import open_dataset
from mim_jax.data.loader import Loader


def test_every_way_reads_every_image_alike(tmp_path, monkeypatch):
    (tmp_path / "jpegs" / "train").mkdir(parents=True)
    (tmp_path / "jpegs" / "test").mkdir()
    paths = write_jpegs(tmp_path / "jpegs" / "train", 4)
    dataset = open_dataset(f"folder:{tmp_path / 'jpegs'}", "train", cache_dir=str(tmp_path))
    assert {("bare loop", 1), ("Loader", 1)} <= competitors(paths, dataset, 2).keys()

    read = []
    monkeypatch.setattr(bench_loader, "one", lambda path, index: read.append((path, index)))
    run_bare(paths)
    assert read == list(zip(paths, range(4), strict=True))

    batches = []

    class Watched(Loader):
        def iterate(self, first_step):
            for batch in super().iterate(first_step):
                batches.append(batch)
                yield batch

    monkeypatch.setattr(bench_loader, "Loader", Watched)
    run_loader(dataset, 2, 1)
    index = np.concatenate([batch["index"] for batch in batches])
    assert sorted(index.tolist()) == [0, 1, 2, 3]
    names = sorted(paths)  # the order of the folder's dataset
    for place, image in zip(index, np.concatenate([batch["image"] for batch in batches]), strict=True):
        np.testing.assert_array_equal(image, one(names[place], int(place)))


def test_the_table_is_what_the_clocks_said(monkeypatch, capsys):
    """Two rounds of 32 images; the best of each way counts, per wall clock and per processor time by itself."""
    now = SimpleNamespace(wall=0.0, cpu=0.0)
    taken = {"bare loop": iter([(4.0, 3.0), (2.0, 4.0)]), "Loader": iter([(2.0, 3.2), (1.0, 16.0)])}

    def work(name):
        wall, cpu = next(taken[name])
        now.wall, now.cpu = now.wall + wall, now.cpu + cpu

    ways = {("bare loop", 1): lambda: work("bare loop"), ("Loader", 2): lambda: work("Loader")}
    clock = SimpleNamespace(perf_counter=lambda: now.wall, process_time=lambda: now.cpu)
    monkeypatch.setattr(bench_loader, "time", clock)
    monkeypatch.setattr(bench_loader, "competitors", lambda *_: ways)
    bench_loader.main(count=40, batch_size=16, rounds=2)
    lines = [line.rsplit(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    assert " ".join(lines[0]).startswith("32 JPEGs of 500 x 375")
    assert lines[2:] == [["bare loop", "1", "16", "11", "1.00"], ["Loader", "2", "32", "10", "0.94"]]


@pytest.fixture(autouse=True)
def _without_grain(monkeypatch):
    """Grain may be installed or not; its row is no part of what is tested here."""
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
