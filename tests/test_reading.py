"""Files that anybody may have changed: kind, size, depth, numbers and shape are checked, and what is wrong is said."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mim_jax.reading import (
    DEEPEST,
    Unreadable,
    anything,
    check_file,
    listed,
    mapping,
    number,
    parse_json,
    read_bytes,
    read_json,
    record,
    text,
    whole,
)


def put_socket(path: Path) -> None:
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def put_huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "no such file"),
    "directory": (Path.mkdir, "a directory"),
    "pipe": (os.mkfifo, "a named pipe"),
    "socket": (put_socket, "a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "a broken link"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
    "huge": (put_huge, "1048576 MiB, where at most 64 MiB"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put, says = KINDS[kind]
    put(tmp_path / "file")
    found: list[BaseException] = []

    def read() -> None:
        try:
            read_bytes(tmp_path / "file")
        except Unreadable as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)  # a read that waits must not hang the tests
    thread.start()
    thread.join(5)
    assert found and says in str(found[0])
    assert found[0].absent == (kind == "nothing")  # type: ignore[attr-defined]


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345" and check_file(tmp_path / "file") == 5
    with pytest.raises(Unreadable, match="5 bytes, where at most 4 bytes"):
        read_bytes(tmp_path / "file", 4)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"a": "\xff"}', r"not UTF-8 \(byte 7\)"),
        (b'{\n"a": 1,\n', r"not JSON \(line 3\)"),
        (b"NaN", "NaN, which is not a finite number"),
        (b"[1e999]", "1e999, which is not finite"),
        (b"9" * 5000, "5000 digits"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested more than"),
        (b"[" * 200_000, "nested more than"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested more than"),
    ],
)
def test_what_is_no_json_of_ours(content: bytes, says: str) -> None:
    with pytest.raises(Unreadable, match=says):
        parse_json(content, anything)


def test_the_deepest_that_is_read() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, anything)
    assert parse_json("[NaN, Infinity]", anything, finite=False)[1] == float("inf")


SHAPE = record({"step": whole(0, 9)}, {"rows": listed(text(3), longest=2)}, others=mapping(number(0.0)))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("null", "it is null, not an object"),
        ("{}", "it lacks step"),
        ('{"step": true}', "step is true, not a whole number"),
        ('{"step": 1.0}', "step is 1.0, not a whole number"),
        ('{"step": "1"}', 'step is "1", not a whole number'),
        ('{"step": 10}', r"step is 10, not in 0\.\.9"),
        ('{"step": 1, "rows": {}}', "rows is {}, not a list"),
        ('{"step": 1, "rows": ["a", "b", "c"]}', "rows has 3 values, not 0 to 2"),
        ('{"step": 1, "rows": ["a", "long"]}', "rows.1 is a text of 4 characters"),
        ('{"step": 1, "rows": [5]}', "rows.0 is 5, not a text"),
        ('{"step": 1, "more": {"x": -1}}', "more.x is -1, not 0 or more"),
        ('{"step": 1, "more": {"x": false}}', "more.x is false, not a number"),
        ('{"step": 1, "more": [' + "1," * 99 + "1]}", r"more is \[1, .{1,60}\.\.\., not an object"),
        ('{"step": 1, "two\\nlines": 1}', r"two\\nlines is 1, not an object"),
    ],
)
def test_what_has_another_shape(value: str, says: str) -> None:
    with pytest.raises(Unreadable, match=says) as caught:
        parse_json(value, SHAPE)
    assert "\n" not in str(caught.value)


def test_what_has_the_shape(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"step": 3, "rows": ["a"], "more": {"x": 0.5}}')
    found: Any = read_json(tmp_path / "a.json", SHAPE)
    assert found == {"step": 3, "rows": ["a"], "more": {"x": 0.5}}
