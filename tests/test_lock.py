"""One process at a time: who is alive, who is dead, on this machine, on another, and where there is no flock."""

import errno
import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mim_jax.storage import Lock, StorageError
from mim_jax.storage import lock as module
from mim_jax.storage.lock import STALE_SECONDS, this_process

GONE = 2**22 + 1
"""No process has this number: it is above the kernel's largest."""


def left_by(tmp_path: Path, *, silent: float = 0.0, **facts: Any) -> Path:
    """The file of another holder, last renewed so many seconds ago."""
    file = tmp_path / "lock.json"
    file.write_text(json.dumps({**this_process(), "command": "other", **facts}))
    then = time.time() - silent
    os.utime(file, (then, then))
    return file


def no_flock(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_it_is_had_once_and_given_back(tmp_path: Path) -> None:
    file = tmp_path / "lock.json"
    with Lock(file, "the run"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
        with pytest.raises(StorageError, match=f"the run is in use by process {os.getpid()} on"):
            Lock(file, "the run").acquire()
        assert file.exists()  # the second one took nothing away
    assert not file.exists()
    with Lock(file, "the run"):
        pass


DEAD = {
    "its process is gone": {"pid": GONE, "process_started": "5"},
    "its number is another's by now": {"process_started": "5"},
    "the machine was started anew": {"boot": "before"},
}


@pytest.mark.parametrize("flock", [True, False])
@pytest.mark.parametrize("name", DEAD)
def test_a_dead_one_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, flock: bool
) -> None:
    file = left_by(tmp_path, **DEAD[name])
    if not flock:
        monkeypatch.setattr(fcntl, "flock", no_flock)
    with Lock(file, "the run", settle_seconds=0.0):
        assert json.loads(file.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("flock", [True, False])
def test_another_machine_is_alive_while_it_renews_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    if not flock:
        monkeypatch.setattr(fcntl, "flock", no_flock)
    file = left_by(tmp_path, silent=60, host="tpu-7", pid=12)
    before = file.read_text()
    with pytest.raises(
        StorageError, match=r"process 12 on tpu-7 .*last heard of 6\d s ago.* delete .*lock.json"
    ):
        Lock(file, "the run", settle_seconds=0.0).acquire()
    assert file.read_text() == before and os.listdir(tmp_path) == ["lock.json"]
    then = time.time() - STALE_SECONDS - 1
    os.utime(file, (then, then))
    with Lock(file, "the run", settle_seconds=0.0):
        assert json.loads(file.read_text())["host"] == this_process()["host"]


def test_without_flock_a_living_process_is_found_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_flock)
    file = left_by(tmp_path, pid=os.getppid(), process_started=module.process_start_time(os.getppid()))
    with pytest.raises(StorageError, match=f"process {os.getppid()} on"):
        Lock(file, "the run", settle_seconds=0.0).acquire()


@pytest.mark.parametrize("flock", [True, False])
def test_of_many_at_once_exactly_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    if not flock:
        monkeypatch.setattr(fcntl, "flock", no_flock)
        # Threads are one process: they must be told apart as processes are.
        monkeypatch.setattr(
            module, "this_process", lambda: {**this_process(), "since": str(threading.get_ident())}
        )
        monkeypatch.setattr(module, "process_start_time", lambda pid: None)
    file, start, won = tmp_path / "lock.json", threading.Barrier(8), []

    def contend() -> None:
        lock = Lock(file, "the run", settle_seconds=0.5)
        start.wait()
        try:
            lock.acquire()
            won.append(lock)
        except StorageError:
            pass

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[1]", b"\xff\xfe", b"[" * 60_000, b'{"host": "x", "pid": 1e400}']
)
def test_a_file_that_says_nothing_blocks_nobody(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "lock.json"
    file.write_bytes(content)
    with Lock(file, "the run"):
        assert json.loads(file.read_text())["pid"] == os.getpid()


def test_links_and_pipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "lock.json").symlink_to("precious")
    with pytest.raises(StorageError, match="it is a link"):
        Lock(tmp_path / "lock.json", "the run").acquire()
    assert (tmp_path / "precious").read_text() == "x"
    (tmp_path / "lock.json").unlink()
    os.mkfifo(tmp_path / "lock.json")
    with pytest.raises(StorageError, match="not a regular file"):
        Lock(tmp_path / "lock.json", "the run").acquire()


def test_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)
    file = tmp_path / "lock.json"
    with Lock(file, "the run"):
        os.utime(file, (0, 0))
        deadline = time.time() + 20
        while file.stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.02)
        assert file.stat().st_mtime > 0
