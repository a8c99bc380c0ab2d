"""What can lie where a file of JSON or of numbers is expected."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

Put = Callable[[Path], None]
HUGE = 3 << 30
"""Bytes that a sparse file claims: more than any text of ours has, no space on the disk."""


def bytes_of(content: bytes | str) -> Put:
    """Puts a file of these bytes."""

    def put(path: Path) -> None:
        remove(path)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return put


def remove(path: Path) -> None:
    """Whatever lies there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def pipe(path: Path) -> None:
    """Nobody writes into it: whoever opens it to read waits."""
    remove(path)
    os.mkfifo(path)


def folder(path: Path) -> None:
    remove(path)
    path.mkdir()


def device(path: Path) -> None:
    """Whoever reads it to its end reads for ever."""
    remove(path)
    path.symlink_to("/dev/zero")


def endpoint(path: Path) -> None:
    remove(path)
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def huge(path: Path) -> None:
    remove(path)
    with path.open("wb") as stream:
        stream.write(b"[1, ")
        os.truncate(path, HUGE)


def broken_link(path: Path) -> None:
    remove(path)
    path.symlink_to("nowhere")


KINDS: dict[str, Put] = {
    "a pipe": pipe,
    "a directory": folder,
    "a link to /dev/zero": device,
    "a socket": endpoint,
    "huge": huge,
    "not UTF-8": bytes_of(b'{"a": "\xff\xfe\x80"}'),
    "zero bytes": bytes_of(b"\0" * 4096),
}
"""Of a file's kind, not of what it says."""

TEXTS: dict[str, str] = {
    "empty": "",
    "cut short": '{"model": {"width": 3',
    "null": "null",
    "a number": "5",
    "a text": '"text"',
    "true": "true",
    "a list of numbers": "[1, 2]",
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "NaN": "NaN",
    "a number of 9000 digits": "9" * 9000,
}
"""JSON, or nearly, that says what nobody expects."""
