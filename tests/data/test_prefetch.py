"""Batches made ahead: order, waiting, errors, and threads that end."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mim_jax.data import ImageView, Loader, open_dataset, prefetch
from mim_jax.data.crop import NoCrop, RandomResizedCrop
from mim_jax.data.decode_pool import PendingBatch
from mim_jax.data.examples import ArrayImage, Example

RANDOM = ImageView((6, 6), RandomResizedCrop(), flip=True)
WHOLE = ImageView((4, 4), NoCrop())


def dataset():
    return open_dataset("synthetic:10:8", "train")


def threads_alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mim_jax-")]


def test_no_thread_outlives_a_break_a_close_or_an_abandoned_iterator():
    loader = Loader(dataset(), RANDOM, batch_size=4, seed=0)
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


@pytest.mark.slow
def test_a_process_that_ends_in_the_middle_ends():
    code = (
        "from mim_jax.data import ImageView, Loader, open_dataset\n"
        "from mim_jax.data.crop import RandomResizedCrop\n"
        "view = ImageView((32, 32), RandomResizedCrop())\n"
        "held = Loader(open_dataset('photos', 'train'), view, batch_size=64, seed=0).iterate(0)\n"
        "next(held)\n"
        "raise SystemExit(7)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, timeout=30, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (7, "")


class Counted:
    """Images that count how often they are read. After the first `free` reads they wait at a gate. One may fail."""

    name, num_classes, class_names, annotation, fingerprint = "counted", 0, (), None, "0"

    def __init__(self, free=10**9, fails=-1, error=None):
        self.free, self.fails, self.error = free, fails, error
        self.read, self.waiting, self.gate, self._lock = 0, 0, threading.Event(), threading.Lock()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        with self._lock:
            self.read += 1
            waits = self.read > self.free
            self.waiting += waits
        if waits and not self.gate.wait(timeout=30):
            raise AssertionError("nobody opened the gate")
        if index == self.fails:
            raise self.error
        return Example(ArrayImage(np.full((4, 4, 3), index, np.uint8)))

    def describe(self):
        return "counted"


def until(condition):
    """Waits for it, half a minute at most."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)


def test_an_error_of_a_thread_surfaces_as_it_was():
    error = ZeroDivisionError("from the depth")
    with Loader(Counted(fails=3, error=error), WHOLE, batch_size=4, seed=0) as loader:
        with pytest.raises(ZeroDivisionError) as caught:
            list(loader.iterate(0))
        assert caught.value is error
    assert not threads_alive()


def test_an_error_of_place_surfaces():
    def refuse(batch):
        raise RuntimeError("no device")

    with (
        Loader(dataset(), RANDOM, batch_size=4, seed=0) as loader,
        pytest.raises(RuntimeError, match="no device"),
    ):
        next(loader.iterate(0, refuse))


def test_batches_are_made_ahead():
    """While the consumer is busy with one batch, `prefetch` get ready, one is at hand and one begun; no more."""
    counted = Counted()
    with Loader(counted, WHOLE, batch_size=8, seed=0, threads=2, prefetch=2) as loader:
        batches = loader.iterate(0)
        next(batches)
        until(lambda: counted.read == 8 * (1 + 2 + 1 + 1))
        time.sleep(0.1)  # too short to prove that no more are read; one that reads on is most likely seen
        assert counted.read == 40
        next(batches)
        until(lambda: counted.read == 48)


def test_waiting_is_measured(monkeypatch):
    clock = iter([0.0, 5.0, 5.0, 5.0, 6.0, 13.0])  # before and after each wait
    monkeypatch.setattr(prefetch, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with Loader(dataset(), RANDOM, batch_size=4, seed=0) as loader:
        batches = loader.iterate(0)
        for total in (5.0, 5.0, 12.0):
            next(batches)
            assert loader.stall_seconds == total


def test_closing_does_not_wait_for_pending_batches(monkeypatch):
    """Two batches of 400 are pending, with one image in the hands of each thread: these alone are finished."""
    counted, abandoned, abandon = Counted(free=400), [], PendingBatch.abandon

    def abandoning(pending):
        abandon(pending)
        abandoned.append(pending)
        if len(abandoned) == 2:
            counted.gate.set()

    monkeypatch.setattr(PendingBatch, "abandon", abandoning)
    with Loader(counted, WHOLE, batch_size=400, seed=0, threads=2) as loader:
        batches = loader.iterate(0)
        next(batches)
        (prefetcher,) = loader._prefetchers
        until(lambda: counted.waiting == 2 and len(prefetcher._pending) == 2)
        batches.close()
        assert counted.read == 402
