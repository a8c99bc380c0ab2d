"""A directory for one process at a time: lock.json in it names its owner.

On a disk the kernel's lock (flock) decides: it ends with its process, however that ends, so a dead one blocks nobody on its own
machine. It does not reach other machines on every network disk, and buckets have none: there the holder renews the file, and one that
has not been renewed for STALE_SECONDS seconds is a dead one's.
"""

import errno
import fcntl
import json
import os
import pathlib
import shlex
import socket
import stat
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from etils import epath

from mim_jax.storage.files import StorageError, is_bucket, read_small_json, write_json

LOCK_FILE = "lock.json"
RENEW_SECONDS = 20.0
STALE_SECONDS = 300.0
"""Seconds between two renewals, and after the last one until an owner on another machine counts as dead."""
SETTLE_SECONDS = 2.0
"""Seconds after which, where there is no flock, the last of several writers is the owner."""
_MAX_COMMAND_LENGTH = 240
"""Characters of a command in the file."""
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Lock:
    """Held from `acquire` to `release`; a context manager that does both.

    Args:
        file: the lock's file, in a directory that exists.
        subject: what is locked, as an error calls it.
        settle_seconds: as SETTLE_SECONDS.
    """

    def __init__(
        self, file: str | os.PathLike[str], subject: str, *, settle_seconds: float = SETTLE_SECONDS
    ) -> None:
        self._file, self._subject, self._settle_seconds = epath.Path(file), subject, settle_seconds
        self._descriptor: int | None = None
        self._owner: dict[str, Any] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Raises StorageError naming the process that holds the lock."""
        owner = this_process()
        if is_bucket(self._file):
            self._refuse_live_owner(self._read(), owner)
            self._acquire_without_flock(owner)
        else:
            self._acquire_on_disk(owner)
        self._owner = owner
        self._end.clear()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    def relocate(self, file: str | os.PathLike[str]) -> None:
        """Says where the lock's file is now, after its directory got another name."""
        self._file = epath.Path(file)

    def release(self) -> None:
        """Unlocks, and removes the file."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._owner and _same_owner(self._read(), self._owner):
            self._file.unlink(missing_ok=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._owner = {}

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _acquire_on_disk(self, owner: dict[str, Any]) -> None:
        """With flock, where the disk has it; a file that another process removed meanwhile is not the lock any more."""
        while True:
            descriptor = _open(self._file)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    locked = True
                except BlockingIOError:
                    raise self._refusal(self._flock_owner()) from None
                except OSError as error:
                    if error.errno not in _NO_FLOCK:
                        raise
                    locked = False
                if not _is_same_file(descriptor, self._file):
                    continue
                self._refuse_live_owner(self._read(), owner, flock=locked)
                if locked:
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(owner, indent=1).encode(), 0)
                    self._descriptor, descriptor = descriptor, -1
                    return
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
            self._acquire_without_flock(owner)
            return

    def _acquire_without_flock(self, owner: dict[str, Any]) -> None:
        """Of several that write at once the last is the one that has it; the others see that."""
        write_json(self._file, owner)
        time.sleep(self._settle_seconds)
        last_writer = self._read()
        if not _same_owner(last_writer, owner):
            raise self._refusal(last_writer)

    def _refuse_live_owner(
        self, other: dict[str, Any], owner: dict[str, Any], *, flock: bool = False
    ) -> None:
        """Raises StorageError where the owner that the file names lives. flock: the kernel has just said that none here does."""
        if not other:
            return
        if other.get("host") == owner["host"]:
            if flock or other.get("boot") != owner["boot"]:
                return  # dead, or of before this machine was started
            if process_start_time(_pid(other)) != other.get("process_started"):
                return  # dead; its number may be another's by now
            raise self._refusal(other)
        silence = self._seconds_since_renewal(other)
        if silence < STALE_SECONDS:
            raise self._refusal(other, silence)

    def _seconds_since_renewal(self, other: dict[str, Any]) -> float:
        """Seconds since another machine's process has renewed the file, by the clock of the disk it lies on."""
        if is_bucket(self._file):
            beat = other.get("beat")
            return time.time() - beat if isinstance(beat, int | float) else STALE_SECONDS
        renewed = os.stat(self._file).st_mtime
        probe = pathlib.Path(self._file).with_name(f".{self._file.name}.clock-{os.getpid()}")
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.fstat(descriptor).st_mtime - renewed
        finally:
            os.close(descriptor)
            probe.unlink()

    def _refusal(self, other: dict[str, Any], silence: float | None = None) -> StorageError:
        who = (
            f"process {other.get('pid')} on {other.get('host')} since {other.get('since')} ({other.get('command')})"
            if other
            else "another process"
        )
        remedy = "wait for it or stop it, or name another place"
        if silence is not None:
            remedy += (
                f"; it was last heard of {max(0.0, silence):.0f} s ago, and {STALE_SECONDS:.0f} s after its last sign of life"
                f" it counts as dead (or, if you know that it is, delete {self._file})"
            )
        return StorageError(f"{self._subject} is in use by {who}: {remedy}")

    def _flock_owner(self) -> dict[str, Any]:
        """Who has flock: it writes its name a moment after."""
        for _ in range(20):
            holder = self._read()
            if holder and process_start_time(_pid(holder)) == holder.get("process_started"):
                break
            time.sleep(0.05)
        return holder

    def _read(self) -> dict[str, Any]:
        """What the file says of its owner; empty where it says nothing that can be understood."""
        owner = read_small_json(self._file)
        return owner if isinstance(owner.get("host"), str) and _pid(owner) else {}

    def _renew(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            try:
                if self._descriptor is not None:
                    os.utime(self._descriptor)
                else:
                    write_json(self._file, {**self._owner, "beat": time.time()})
            except (OSError, StorageError) as error:
                print(f"mim_jax: the lock {self._file} could not be renewed ({error})", file=sys.stderr)


def this_process() -> dict[str, Any]:
    """Who we are, as a lock says it."""
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "pid": os.getpid(),
        "process_started": process_start_time(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "beat": time.time(),
        "command": _shortened(shlex.join(sys.orig_argv)),
    }


def process_start_time(pid: int) -> str | None:
    """When a living process of this machine was started, as a number of the kernel's; None without such a process.

    Where the kernel does not say when, "alive".
    """
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        if pathlib.Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid or os.getpid(), 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "alive"
    return "alive"


def _pid(owner: dict[str, Any]) -> int:
    pid = owner.get("pid")
    return pid if isinstance(pid, int) and pid > 0 else 0


def _shortened(command: str) -> str:
    command = " ".join(command.split())
    return command if len(command) <= _MAX_COMMAND_LENGTH else f"{command[:_MAX_COMMAND_LENGTH]}..."


def _boot_id() -> str:
    """Names this machine since it was started; '' where that cannot be known."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _open(file: epath.Path) -> int:
    try:
        descriptor = os.open(
            file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666
        )
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise StorageError(f"{file} cannot be written: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StorageError(f"{file} is not a regular file: remove it")
    return descriptor


def _is_same_file(descriptor: int, file: epath.Path) -> bool:
    try:
        there, here = os.lstat(file), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _same_owner(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("host", "boot", "pid", "process_started", "since"))
