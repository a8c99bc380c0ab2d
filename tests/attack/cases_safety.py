"""Directories and files that are not ours, links that lead elsewhere, locks, buckets: nothing outside is changed, whatever ends how."""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.attack import base, odd
from tests.attack.case import ROOT, Act, Case, main, train

AREA = "safety"
OURS = {"format": "mim_jax run", "version": 1, "task": "train"}
TASKS = {"train": "mapet", "gallery": "gallery", "tokenizer": "tokenizer"}
Make = Callable[[Path], object]
LARGE = 1 << 20
"""Bytes from which a file's size stands for its content."""


def tree(root: Path) -> dict[str, object]:
    """Relative path -> what lies there, links not followed."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path.relative_to(root))] = os.readlink(path)
            elif path.is_file() and path.lstat().st_size < LARGE:
                found[str(path.relative_to(root))] = path.read_bytes()
            else:
                found[str(path.relative_to(root))] = (
                    path.lstat().st_mode,
                    path.is_dir() or path.lstat().st_size,
                )
    return found


def guarded(root: Path, act: Act) -> Act:
    """Runs it, and looks whether everything below `root` is as it was."""
    before = tree(root)

    def guard() -> object:
        try:
            return act()
        finally:
            after = tree(root)
            changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
            if changed:
                raise AssertionError(f"{root} was changed: {changed[:5]}")

    return guard


def model(path: Path) -> None:
    """Somebody's network beside a thesis."""
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "vit"}')
    (path / "thesis.tex").write_text("years of work")


def marked(content: str) -> Make:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "mim_jax.json").write_text(content)
        (path / "thesis.tex").write_text("years of work")

    return make


def with_marker(put: odd.Put) -> Make:
    def make(path: Path) -> None:
        path.mkdir()
        put(path / "mim_jax.json")

    return make


def earlier(path: Path) -> None:
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.json").write_text("{}")


def link_to(make: Make | None) -> Make:
    def link(path: Path) -> None:
        target = path.with_name("theirs")
        if make is not None:
            make(target)
        path.symlink_to(target)

    return link


def lock_of_elsewhere(path: Path) -> None:
    path.mkdir()
    owner = {
        "host": "tpu-7",
        "boot": "x",
        "pid": 12,
        "process_started": "5",
        "since": "now",
        "command": "python",
    }
    (path / "lock.json").write_text(json.dumps(owner))


def own_lock(put: Callable[[Path], object]) -> Make:
    def make(path: Path) -> None:
        path.mkdir()
        put(path / "lock.json")

    return make


PLACES: dict[str, tuple[Make, str]] = {
    "a file": (odd.bytes_of("x"), "is a file, not a directory"),
    "a pipe": (odd.pipe, "is a file, not a directory"),
    "a socket": (odd.endpoint, "is a file, not a directory"),
    "somebody's model": (model, "files that are not ours"),
    "an earlier version's run": (earlier, "earlier version of mim_jax"),
    "another task's": (marked(json.dumps({**OURS, "task": "other"})), "belongs to the task other"),
    "a later version's": (marked(json.dumps({**OURS, "version": 2})), "version 2"),
    "a marker of version null": (marked(json.dumps({**OURS, "version": None})), "of version None"),
    "a marker of null": (marked("null"), "not ours"),
    "a marker of deep lists": (marked("[" * 60_000), "not ours"),
    "a marker that is a pipe": (with_marker(odd.pipe), "not ours"),
    "a marker that is a directory": (with_marker(odd.folder), "not ours"),
    "a marker that is /dev/zero": (with_marker(odd.device), "not ours"),
    "a huge marker": (with_marker(odd.huge), "not ours"),
    "a dangling link": (link_to(None), "is a link to .* not there"),
    "a link to a file": (link_to(odd.bytes_of("x")), "is a link to .* a file"),
    "a link to a model": (link_to(model), "files that are not ours"),
}


def _placed(task: str, make: Make, flags: Sequence[str]) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        place = tmp / "here"
        place.mkdir()
        make(place / "run")
        config = ROOT / "configs" / f"{TASKS[task]}.py"
        return guarded(place, main([f"--config={config}", f"--workdir={place / 'run'}", *flags]))

    return build


WORKDIRS = [
    Case(AREA, f"{task}{flag} into {name}", _placed(task, make, [flag] if flag else []), says=says)
    for task, flag in (
        ("train", ""),
        ("train", "--overwrite"),
        ("gallery", "--overwrite"),
        ("tokenizer", ""),
    )
    for name, (make, says) in PLACES.items()
]

SCHEMES = (
    "s3://b/x",
    "gs:/b/x",
    "gs://",
    "gs:///x",
    "https://x/y",
    "hdfs://a/b",
    "az://b/x",
    "file://relative",
    "file:/x",
    "",
    " ",
)


def _at(workdir: str) -> Callable[[Path], Act]:
    return lambda tmp: guarded(
        tmp, main([f"--config={ROOT / 'configs' / 'mapet.py'}", f"--workdir={workdir}"])
    )


def with_overrides(*overrides: str) -> Callable[[Path], Act]:
    return lambda tmp: guarded(tmp, train(tmp / "run", *overrides))


PATHS = [
    *(
        Case(AREA, f"--workdir={scheme!r}", _at(scheme), says="--workdir is|give a path")
        for scheme in SCHEMES
    ),
    *(
        Case(AREA, f"init={scheme}", with_overrides(f"init={scheme}"), says="config.init")
        for scheme in SCHEMES[:4]
    ),
    *(
        Case(
            AREA, f"folder:{scheme}", with_overrides(f"data.source=folder:{scheme}"), says="the image folder"
        )
        for scheme in SCHEMES[:4]
    ),
    *(
        Case(
            AREA,
            f"arrays:{scheme}",
            with_overrides(f"data.source=arrays:{scheme}"),
            says="the file of the source",
        )
        for scheme in SCHEMES[:4]
    ),
]


def _held(tmp: Path) -> Act:
    from mim_jax.storage import Lock

    run = base.copy(base.STOPPED, tmp / "run")
    Lock(run / "lock.json", str(run)).acquire()
    return train(run)


def _in(make: Make) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        make(tmp / "run")
        return guarded(tmp, train(tmp / "run"))

    return build


def _dead(tmp: Path) -> Act:
    """What a process that was killed has left."""
    run = base.copy(base.STOPPED, tmp / "run")
    owner = {
        "host": socket.gethostname(),
        "boot": "x",
        "pid": 2**22 + 7,
        "process_started": "5",
        "since": "then",
    }
    (run / "lock.json").write_text(json.dumps(owner))
    return train(run)


def _silent(tmp: Path) -> Act:
    """Another machine's process that has not been heard of for an hour."""
    lock_of_elsewhere(tmp / "run")
    os.utime(tmp / "run" / "lock.json", (time.time() - 3600,) * 2)
    return train(tmp / "run")


LOCKS = [
    Case(AREA, "a run that another start has", _held, says=r"in use by process \d+ on .* since"),
    Case(
        AREA, "a lock of another machine", _in(lock_of_elsewhere), says="process 12 on tpu-7 .* last heard of"
    ),
    Case(AREA, "a dead process's lock", _dead, accepted=True),
    Case(AREA, "a lock of a machine that is silent", _silent, accepted=True),
    Case(
        AREA,
        "a lock that is a link",
        _in(own_lock(lambda file: file.symlink_to("/etc/passwd"))),
        says="is a link",
    ),
    Case(AREA, "a lock that is a pipe", _in(own_lock(odd.pipe)), says="not a regular file"),
    Case(AREA, "a lock that is a directory", _in(own_lock(odd.folder)), says="lock.json cannot be written"),
]


def _linked(name: str) -> Callable[[Path], Act]:
    """A file of a run is a link to its content elsewhere: that stays, whatever the run writes."""

    def build(tmp: Path) -> Act:
        run, outside = base.copy(base.STOPPED, tmp / "run"), tmp / "outside"
        outside.mkdir()
        if (run / name).exists():
            os.rename(run / name, outside / name)
        else:
            (outside / name).write_text("precious")
        (run / name).symlink_to(outside / name)
        return guarded(outside, train(run))

    return build


def _linked_folder(name: str) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        run, outside = base.copy(base.STOPPED, tmp / "run"), tmp / "outside"
        outside.mkdir()
        (outside / "unfinished-00000009").mkdir()
        odd.remove(run / name)
        (run / name).symlink_to(outside)
        return guarded(outside, train(run))

    return build


def _edited(tmp: Path) -> Act:
    """The rate in config.json is another than that of the checkpoints."""
    run = base.copy(base.STOPPED, tmp / "run")
    told = json.loads((run / "config.json").read_text())
    told["optim"]["lr"] = 0.5
    (run / "config.json").write_text(json.dumps(told))
    return train(run, "optim.lr=0.5")


def _deleted(*overrides: str) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        run = base.copy(base.STOPPED, tmp / "run")
        (run / "config.json").unlink()
        return train(run, *overrides)

    return build


LINKS = [
    *(
        Case(AREA, f"{name} is a link", _linked(name), accepted=True)
        for name in (
            "config.json",
            "versions.json",
            "sessions.json",
            "metrics.jsonl",
            "report.html",
            "mim_jax.json.x",
        )
    ),
    *(
        Case(AREA, f"{name} is a link", _linked_folder(name), says="is a link to")
        for name in ("checkpoints", "tensorboard", "wandb")
    ),
    Case(AREA, "an edited config.json", _edited, says="was changed after the training .*optim.lr"),
    Case(
        AREA,
        "no config.json, another rate",
        _deleted("optim.lr=0.5"),
        says=r"another configuration \(config.optim.lr",
    ),
    Case(AREA, "no config.json, the same", _deleted(), accepted=True),
]

CASES = [*WORKDIRS, *PATHS, *LOCKS, *LINKS]
