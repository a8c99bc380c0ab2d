"""Whose directory it is: what is refused, what --overwrite moves aside, and when that goes or comes back."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath
from small import small_config

from mim_jax import storage
from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Config
from mim_jax.storage import StorageError, marker
from mim_jax.training.run_directory import RunDirectory, read_config

OURS = {"format": "mim_jax run", "version": 1, "task": "train"}


def taken(
    workdir: Path | str, config: Config | None = None, *, overwrite: bool = False, keep: bool = False
) -> None:
    """A start that takes the directory and ends."""
    with RunDirectory(workdir, "train", overwrite=overwrite) as run_directory:
        run_directory.acquire(config or small_config())
        if keep:
            run_directory.discard_replaced()


def tree(root: Path) -> dict[str, str]:
    """Relative path -> content (of a link: where it leads) of all below."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        found[name] = (
            f"-> {os.readlink(path)}" if path.is_symlink() else "" if path.is_dir() else path.read_text()
        )
    return found


def a_run(root: Path) -> Path:
    """A run of ours with a checkpoint's folder."""
    taken(root)
    (root / "checkpoints" / "00000005").mkdir(parents=True)
    (root / "metrics.jsonl").write_text('{"step": 5}\n')
    return root


def test_a_directory_without_a_checkpoint_belongs_to_nobody(tmp_path: Path) -> None:
    """A start that failed before its first checkpoint must not stand in the way of the next one."""
    first, second = small_config(), small_config("mapet", {"optim.lr": 0.5})
    taken(tmp_path, first)
    taken(tmp_path, second)
    assert read_config(tmp_path).optim.lr == 0.5
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config.optim.lr: 0.5 -> ") as caught:
        taken(tmp_path, first)
    assert len(str(caught.value).splitlines()) == 1
    skipping = dataclasses.replace(second, data=dataclasses.replace(second.data, on_bad_image="skip"))
    taken(tmp_path, skipping)  # what is met from now on may be skipped
    assert read_config(tmp_path).data.on_bad_image == "skip"


def _file(path: Path) -> None:
    path.write_text("x")


def _huggingface(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "vit"}')
    (path / "thesis.tex").write_text("years of work")


def _earlier(path: Path) -> None:
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.json").write_text("{}")


def _other_task(path: Path) -> None:
    path.mkdir()
    (path / "mim_jax.json").write_text(json.dumps({**OURS, "task": "tokenizer"}))


def _newer(path: Path) -> None:
    path.mkdir()
    (path / "mim_jax.json").write_text(json.dumps({**OURS, "version": 2}))


def _marker(content: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "mim_jax.json").write_text(content)

    return make


def _linked_marker(path: Path) -> None:
    path.mkdir()
    path.with_name("theirs.json").write_text(json.dumps(OURS))
    (path / "mim_jax.json").symlink_to(path.with_name("theirs.json"))


def _pipe_marker(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "mim_jax.json")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _link_to_file(path: Path) -> None:
    path.with_name("file").write_text("x")
    path.symlink_to("file")


def _link_to_foreign(path: Path) -> None:
    _huggingface(path.with_name("theirs"))
    path.symlink_to("theirs")


REFUSED = {
    "a file": (_file, "is a file, not a directory"),
    "somebody's model and thesis": (
        _huggingface,
        r"files that are not ours \(config.json, thesis.tex; no mim_jax.json",
    ),
    "a run of an earlier version": (_earlier, "an earlier version of mim_jax made, say so: echo"),
    "another task's directory": (_other_task, "belongs to the task tokenizer"),
    "a later version's": (_newer, "is of version 2 of our format"),
    "a marker that is null": (_marker("null"), "not ours"),
    "a marker that is nested": (_marker("[" * 50_000), "not ours"),
    "a marker of another format": (_marker('{"format": "x"}'), "not ours"),
    "a marker without a task": (_marker('{"format": "mim_jax run", "version": 1}'), "not ours"),
    "a marker that is a link": (_linked_marker, "not ours"),
    "a marker that is a pipe": (_pipe_marker, "not ours"),
    "a dangling link": (_dangling, "is a link to .*nowhere, which is not there"),
    "a link to a file": (_link_to_file, "is a link to .*file, which is a file"),
    "a link to somebody's directory": (_link_to_foreign, "not ours"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_ours_is_refused_and_stays(tmp_path: Path, name: str, overwrite: bool) -> None:
    make, words = REFUSED[name]
    make(tmp_path / "run")
    before = None if "pipe" in name else tree(tmp_path)
    with pytest.raises(StorageError, match=words) as caught:
        taken(tmp_path / "run", overwrite=overwrite)
    assert len(str(caught.value).splitlines()) == 1
    assert before is None or tree(tmp_path) == before


def test_a_link_to_a_directory_is_resolved_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scratch disks are often linked to: the run is kept where the link leads, and that is said."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to("scratch")
    taken(tmp_path / "run")
    assert f"is a link: the run is kept in {tmp_path / 'scratch'}" in capsys.readouterr().out
    assert read_config(tmp_path / "scratch").method["name"] == "mapet"
    taken(tmp_path / "run", overwrite=True, keep=True)
    assert (tmp_path / "run").is_symlink() and sorted(os.listdir(tmp_path)) == ["run", "scratch"]


def test_overwrite_keeps_the_old_run_until_there_is_something_new(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    with RunDirectory(run, "train", overwrite=True) as run_directory:
        run_directory.acquire(small_config())
        (aside,) = (path for path in tmp_path.iterdir() if path != run)
        assert aside.name.startswith("run.replaced-")
        assert (aside / "checkpoints" / "00000005").is_dir() and not (run / "checkpoints").exists()
        assert json.loads((run / "mim_jax.json").read_text())["replaces"] == [aside.name]
        run_directory.discard_replaced()
        run_directory.discard_replaced()
    assert os.listdir(tmp_path) == ["run"]
    assert json.loads((run / "mim_jax.json").read_text()) == OURS
    assert sorted(os.listdir(run)) == ["config.json", "mim_jax.json", "versions.json"]  # no lock is left


def test_a_new_run_that_fails_gives_the_old_one_back(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    before = tree(tmp_path)
    with pytest.raises(RuntimeError), RunDirectory(run, "train", overwrite=True) as run_directory:
        run_directory.acquire(small_config())
        (run / "metrics.jsonl").write_text("{}")
        raise RuntimeError
    assert tree(tmp_path) == before


def test_what_a_killed_overwrite_has_moved_goes_with_the_next_start(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    killed = RunDirectory(run, "train", overwrite=True).__enter__()
    killed.acquire(small_config())
    assert killed._lock is not None
    killed._lock.release()  # as the kernel does
    taken(run)
    assert len(os.listdir(tmp_path)) == 2  # still before the first checkpoint
    taken(run, overwrite=True, keep=True)
    assert os.listdir(tmp_path) == ["run"]


def test_what_another_start_puts_in_the_place_of_the_old_run_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two starts at once: while the one moves the old run aside, the other begins under its name."""
    run = a_run(tmp_path / "run")
    move_aside = marker.move_aside

    def slowly(directory: epath.Path) -> str:
        aside = move_aside(directory)
        a_run(tmp_path / "run")
        return aside

    monkeypatch.setattr(marker, "move_aside", slowly)
    with pytest.raises(StorageError, match=r"taken by another process .* is in .*run\.replaced-"):
        taken(run, overwrite=True)
    assert (run / "checkpoints" / "00000005").is_dir() and (run / "metrics.jsonl").exists()
    (aside,) = (path for path in tmp_path.iterdir() if path != run)
    assert (aside / "checkpoints" / "00000005").is_dir()


def test_folders_of_a_run_are_no_links(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (tmp_path / "data").mkdir()
    (run / "tensorboard").symlink_to(tmp_path / "data")
    with pytest.raises(StorageError, match="tensorboard is a link to"):
        taken(run)


def test_other_peoples_files_in_a_run_outlive_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    (run / "thesis.tex").write_text("years of work")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.png").write_text("image")
    (run / "tensorboard").symlink_to(tmp_path / "data")
    taken(run, overwrite=True, keep=True)
    (aside,) = (path for path in tmp_path.iterdir() if "replaced" in path.name)
    assert tree(aside) == {"thesis.tex": "years of work"}
    assert f"{aside} is kept: it holds files that are not ours (thesis.tex)" in capsys.readouterr().out
    assert (tmp_path / "data" / "1.png").read_text() == "image"


def test_a_marker_cannot_name_what_else_is_removed(tmp_path: Path) -> None:
    run, other = a_run(tmp_path / "run"), a_run(tmp_path / "other")
    outside = a_run(tmp_path / "deep" / "run.replaced-1")
    for names in ([other.name], ["../deep/run.replaced-1"], [str(outside)], [".", "..", ""], "run", [3]):
        (run / "mim_jax.json").write_text(json.dumps({**OURS, "replaces": names}))
        taken(run, keep=True)
        (run / "mim_jax.json").write_text(json.dumps(OURS))
    assert (other / "checkpoints" / "00000005").is_dir() and (outside / "checkpoints").is_dir()


def test_overwrite_from_inside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path / "run")
    before = tree(tmp_path)
    for here, name in ((run, "."), (run / "checkpoints", ".."), (run / "checkpoints", str(run))):
        monkeypatch.chdir(here)
        with pytest.raises(StorageError, match="is, or holds, the current directory"):
            taken(name, overwrite=True)
    assert tree(tmp_path) == before


def test_links_in_a_run_of_ours_are_not_followed(tmp_path: Path) -> None:
    run, outside = a_run(tmp_path / "run"), tmp_path / "outside"
    outside.mkdir()
    for name in ("config.json", "versions.json", "lock.json.partial", "report.html"):
        (outside / name).write_text("precious")
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(outside / name)
    (run / "config.json").unlink()
    storage.write_json(
        run / "config.json", json.loads((a_run(tmp_path / "other") / "config.json").read_text())
    )
    taken(run)
    assert set(tree(outside).values()) == {"precious"}
    (run / "lock.json").symlink_to(outside / "versions.json")
    with pytest.raises(StorageError, match=r"lock.json cannot be written: it is a link"):
        taken(run)
    assert set(tree(outside).values()) == {"precious"}


@pytest.mark.slow  # the run
def test_everything_that_a_run_writes_is_known_as_ours(finished_run: Path) -> None:
    known = {marker.MARKER_FILE, *marker.RUN_FILES, *marker.RUN_DIRECTORIES}
    assert set(os.listdir(finished_run)) <= known


HOLD = """
import sys
from mim_jax.storage import Lock
with Lock(sys.argv[1], "the run"):
    print("has it", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that has the lock of a directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_has_the_directory(tmp_path: Path, holder: subprocess.Popen) -> None:
    with pytest.raises(
        StorageError, match=rf"in use by process {holder.pid} on \S+ since 20.*python.* -c"
    ) as caught:
        taken(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert os.listdir(tmp_path) == ["lock.json"]
    holder.kill()  # leaves its file behind
    holder.wait()
    assert (tmp_path / "lock.json").exists()
    taken(tmp_path)
    assert not (tmp_path / "lock.json").exists()
