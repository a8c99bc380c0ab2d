"""Batches made ahead: order, waiting, errors, and threads that end."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mim_jax.data import InputSpec, Loader, open_source
from mim_jax.data.sources.base import ArrayPicture

RANDOM = InputSpec((6, 6), "random_resized", flip=True)


def source():
    return open_source("synthetic:10:8", "train")


def threads_alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mim_jax-")]


def test_no_thread_outlives_a_break_a_close_or_an_abandoned_iterator():
    loader = Loader(source(), RANDOM, batch_size=4, seed=0)
    for _ in loader.iterate(0):
        break
    assert not [thread for thread in threads_alive() if "prefetch" in thread.name]
    held = loader.iterate(0)
    next(held)
    loader.close()
    assert not threads_alive()
    assert len(list(held)) <= 2  # What was ready, and then the end: no waiting for ever.
    never_started = loader.iterate(0)
    del never_started
    assert not threads_alive()


def test_a_process_that_ends_in_the_middle_ends():
    code = (
        "from mim_jax.data import InputSpec, Loader, open_source\n"
        "spec = InputSpec((32, 32), 'random_resized')\n"
        "held = Loader(open_source('photos', 'train'), spec, batch_size=64, seed=0).iterate(0)\n"
        "next(held)\n"
        "raise SystemExit(7)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, timeout=30, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (7, "")


class Slow:
    """Pictures that take a while, and one that fails."""

    name, num_classes, class_names, fingerprint = "slow", 0, (), "0"

    def __init__(self, seconds=0.0, fails=-1, error=None):
        self.seconds, self.fails, self.error = seconds, fails, error

    def __len__(self):
        return 8

    def __getitem__(self, index):
        time.sleep(self.seconds)
        if index == self.fails:
            raise self.error
        return ArrayPicture(np.full((4, 4, 3), index, np.uint8), -1)

    def describe(self):
        return "slow"


def test_an_error_of_a_thread_surfaces_as_it_was():
    error = ZeroDivisionError("from the depth")
    with Loader(Slow(fails=3, error=error), InputSpec((4, 4), "none"), batch_size=4, seed=0) as loader:
        with pytest.raises(ZeroDivisionError) as caught:
            list(loader.iterate(0))
        assert caught.value is error
    assert not threads_alive()


def test_an_error_of_place_surfaces():
    def refuse(batch):
        raise RuntimeError("no device")

    with (
        Loader(source(), RANDOM, batch_size=4, seed=0) as loader,
        pytest.raises(RuntimeError, match="no device"),
    ):
        next(loader.iterate(0, refuse))


def test_batches_are_made_ahead_and_waiting_is_measured():
    with Loader(
        Slow(seconds=0.01), InputSpec((4, 4), "none"), batch_size=8, seed=0, threads=2, prefetch=2
    ) as loader:
        stream = loader.iterate(0)
        next(stream)
        first = loader.stall_seconds
        assert first > 0.03
        time.sleep(0.3)
        next(stream), next(stream)
        assert loader.stall_seconds - first < 0.04  # Unprepared, the two would take 0.08.
        for _ in range(6):
            next(stream)
        assert loader.stall_seconds - first > 0.03


def test_closing_does_not_wait_for_the_batches_in_the_making():
    with Loader(Slow(seconds=0.01), InputSpec((4, 4), "none"), batch_size=400, seed=0, threads=2) as loader:
        stream = loader.iterate(0)
        next(stream)
        before = time.perf_counter()
        stream.close()
        assert time.perf_counter() - before < 1  # The two batches would take 4 seconds.
