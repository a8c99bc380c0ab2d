"""Paths of users, and files that are whole or not there."""

import json
import os
import stat
from pathlib import Path

import pytest
from etils import epath

from mim_jax import storage
from mim_jax.storage import StorageError


def test_paths_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert os.fspath(storage.parse_path("~/runs/a")) == "/home/somebody/runs/a"
    assert os.fspath(storage.parse_path("file:///home/me/a b")) == "/home/me/a b"
    assert os.fspath(storage.parse_path("./gs:/x")) == "gs:/x"  # said so: a local folder
    assert isinstance(storage.parse_path(Path("/x")), epath.Path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s3://bucket/x",
        "gs:/bucket/x",
        "gs://",
        "gs:///x",
        "https://x/y",
        "file://relative",
        "hdfs://a",
        "a\0b",
    ],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(StorageError, match="--workdir is") as caught:
        storage.parse_path(text, "--workdir")
    assert "\n" not in str(caught.value)


def test_a_file_is_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    storage.write_json(file, {"a": 1})
    with pytest.raises(RuntimeError), storage.atomic_write(file) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert json.loads(file.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["config.json"]  # nothing is left of the attempt


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        storage.write_text(tmp_path / "a", "text")
        with storage.atomic_write_path(tmp_path / "b") as name:
            name.unlink()
            name.touch(0o600)  # as a library that makes its own file
    finally:
        os.umask(before)
    for name in "ab":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_replaced_and_never_followed(tmp_path: Path, there: bool) -> None:
    outside, own = tmp_path / "outside", tmp_path / "run"
    own.mkdir()
    if there:
        outside.write_text("thesis")
    (own / "report.html").symlink_to(outside)
    storage.write_text(own / "report.html", "page")
    assert (own / "report.html").read_text() == "page"
    assert not (own / "report.html").is_symlink()
    assert outside.exists() == there
    assert not there or outside.read_text() == "thesis"
    (own / "metrics.jsonl").symlink_to(outside)
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written"):
        storage.open_to_append(own / "metrics.jsonl")


def test_appending_to_a_pipe_ends_in_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(StorageError):
        storage.open_to_append(tmp_path / "metrics.jsonl")


def test_what_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder cannot be written"):
        storage.write_text(tmp_path / "folder", "x")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.write_text(tmp_path / "absent" / "x", "x")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with pytest.raises(StorageError, match="is a link to"):
        storage.make_directory(tmp_path / "link")
    with pytest.raises(StorageError, match="it is a file"):
        (tmp_path / "file").touch()
        storage.make_directory(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link"]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".config.json.partial-01234567", "config.json", ".hidden"):
        (tmp_path / name).touch()
    storage.remove_temporary_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "config.json"]
