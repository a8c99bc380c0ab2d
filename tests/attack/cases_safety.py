"""Directories and files that are not ours, links that lead elsewhere, locks, buckets: nothing outside is changed, whatever ends how."""

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import bucket
from tests.attack import base, odd
from tests.attack.case import ROOT, Act, Case, compare, convert, main, tokenize, train

AREA = "safety"
OURS = {"format": "mim_jax run", "version": 1, "task": "pretrain"}
TASKS = {"pretrain": "mapet", "gallery": "gallery", "tokenizer": "tokenizer"}
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
        ("pretrain", ""),
        ("pretrain", "--overwrite"),
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


def _with(*overrides: str) -> Callable[[Path], Act]:
    return lambda tmp: guarded(tmp, train(tmp / "run", *overrides))


PATHS = [
    *(
        Case(AREA, f"--workdir={scheme!r}", _at(scheme), says="--workdir is|give a path")
        for scheme in SCHEMES
    ),
    *(Case(AREA, f"init={scheme}", _with(f"init={scheme}"), says="config.init") for scheme in SCHEMES[:4]),
    *(
        Case(AREA, f"folder:{scheme}", _with(f"data.source=folder:{scheme}"), says="the image folder")
        for scheme in SCHEMES[:4]
    ),
    *(
        Case(AREA, f"arrays:{scheme}", _with(f"data.source=arrays:{scheme}"), says="the file of the source")
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


def _write_pictures(root: Path, names: Sequence[str]) -> None:
    from PIL import Image

    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(root / f"{name}.png")


def _pictures(link: Callable[[Path], object]) -> Callable[[Path], Act]:
    """A folder of images with a link in it, listed as a run does."""

    def build(tmp: Path) -> Act:
        root = tmp / "pictures"
        _write_pictures(root, ("a/1", "a/2", "b/1", "b/2"))
        link(root)

        def act() -> object:
            from mim_jax.data import open_source

            found = open_source(f"folder:{root}", "train", cache_dir=str(tmp / "cache"))
            if len(found) > 4 or "not followed" not in found.describe():
                raise AssertionError(found.describe())
            return 0

        return act

    return build


def _mutual(root: Path) -> None:
    for name, target in (("a/x", "b"), ("b/y", "a")):
        (root / name).symlink_to(root / target)


FOLDERS = [
    Case(AREA, f"images beside a link: {name}", _pictures(link), accepted=True)
    for name, link in {
        "to /": lambda root: (root / "c").symlink_to("/"),
        "to /, deeper": lambda root: (root / "a" / "c").symlink_to("/"),
        "to /proc": lambda root: (root / "c").symlink_to("/proc"),
        "to itself": lambda root: (root / "c").symlink_to(root),
        "up": lambda root: (root / "a" / "c").symlink_to(".."),
        "to each other": _mutual,
        "to /usr, deeper": lambda root: (root / "b" / "c").symlink_to("/usr"),
    }.items()
]


def _tokens(make: Callable[[Path], object], name: str = "tokens") -> Callable[[Path], Act]:
    """The command tokenize where something lies already."""

    def build(tmp: Path) -> Act:
        weights = base.copy(base.TOKENIZER, tmp / base.TOKENIZER)
        place = tmp / "here"
        place.mkdir()
        make(place / name)
        return guarded(place, tokenize(base.tokens_arguments(weights, place / "tokens")))

    return build


def _planned(put: odd.Put) -> Make:
    def make(path: Path) -> None:
        path.mkdir()
        put(path / "plan.json")

    return make


def _tokens_held(tmp: Path) -> Act:
    from mim_jax.storage import Lock

    weights = base.copy(base.TOKENIZER, tmp / base.TOKENIZER)
    Lock(tmp / ".tokens.lock.json", "it").acquire()
    return tokenize(base.tokens_arguments(weights, tmp / "tokens"))


UNFINISHED = ".tokens.partial"
TOKENS = [
    Case(AREA, f"tokenize into {name}", _tokens(make), says="exists already")
    for name, make in {
        "a file": odd.bytes_of("x"),
        "a model": model,
        "an empty folder": odd.folder,
        "a dangling link": odd.broken_link,
        "a pipe": odd.pipe,
    }.items()
]
TOKENS += [
    Case(AREA, f"tokenize, unfinished is {name}", _tokens(make, UNFINISHED), says=says)
    for name, make, says in (
        ("a model", model, "files that are not ours"),
        ("a file", odd.bytes_of("x"), "it is a file"),
        ("a link", odd.broken_link, "is a link"),
        ("planned by null", _planned(odd.bytes_of("null")), "is damaged"),
        ("planned by deep lists", _planned(odd.bytes_of(odd.TEXTS["deep lists"])), "is damaged"),
        ("planned by a pipe", _planned(odd.pipe), "is damaged"),
        ("planned by /dev/zero", _planned(odd.device), "is damaged"),
        ("planned by a broken link", _planned(odd.broken_link), "is damaged"),
        ("of something else", _planned(odd.bytes_of("{}")), "something else"),
    )
]
TOKENS.append(Case(AREA, "tokenize twice at once", _tokens_held, says="in use by process"))


def _compared(make: Make) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        place = tmp / "here"
        place.mkdir()
        make(place / "run")
        _write_pictures(tmp / "data", ("train/a/1", "train/b/1", "test/a/1", "test/b/1"))
        config = ROOT / "configs" / "compare.py"
        return guarded(
            place,
            compare([f"--config={config}", f"--workdir={place / 'run'}", f"--config.data={tmp / 'data'}"]),
        )

    return build


COMPARISONS = [
    Case(AREA, f"compare into {name}", _compared(make), says=says)
    for name, (make, says) in PLACES.items()
    if name
    in (
        "a file",
        "somebody's model",
        "a dangling link",
        "another task's",
        "a link to a model",
        "a marker of null",
    )
]


def _converted(make: Make) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        place = tmp / "here"
        place.mkdir()
        make(place / "out.safetensors")
        (tmp / "in.pt").write_bytes(b"no weights")
        return guarded(place, convert(tmp / "in.pt", place / "out.safetensors"))

    return build


CONVERTED = [
    Case(AREA, f"convert_torch onto {name}", _converted(make), says="is there already")
    for name, make in {
        "a file": odd.bytes_of("x"),
        "a dangling link": odd.broken_link,
        "a folder": odd.folder,
        "a pipe": odd.pipe,
    }.items()
]


def _in_bucket(act: Callable[[Path], Act], objects: dict[str, Any] | None = None) -> Callable[[Path], Act]:
    """With a bucket `bucket` of these objects."""

    def build(tmp: Path) -> Act:
        def served() -> object:
            with bucket.serving() as found:
                for name, content in (objects or {}).items():
                    bucket.put(name, content() if callable(content) else content)
                before = dict(found)
                try:
                    return act(tmp)()
                finally:
                    if found != before:
                        raise AssertionError(sorted({*found} ^ {*before}))

        return served

    return build


def _commanded(config: str, *flags: str) -> Callable[[Path], Act]:
    return lambda tmp: guarded(tmp, main([f"--config={ROOT / 'configs' / f'{config}.py'}", *flags]))


def _owner() -> bytes:
    owner = {"host": "tpu-7", "pid": 12, "since": "now", "command": "python", "beat": time.time()}
    return json.dumps(owner).encode()


BUCKETS = [
    Case(AREA, f"bucket: {name}", _in_bucket(act, objects), says=says)
    for name, act, objects, says in (
        (
            "somebody's model",
            _commanded("mapet", "--workdir=gs://bucket/run"),
            {"bucket/run/config.json": b"{}"},
            "files that are not ours",
        ),
        (
            "--overwrite",
            _commanded("mapet", "--workdir=gs://bucket/run", "--overwrite"),
            {"bucket/run/mim_jax.json": json.dumps(OURS).encode()},
            "lies in a bucket, where nothing can be moved aside",
        ),
        (
            "a lock of another machine",
            _commanded("mapet", "--workdir=gs://bucket/run"),
            {"bucket/run/lock.json": _owner},
            "process 12 on tpu-7",
        ),
        ("the task tokenizer", _commanded("tokenizer", "--workdir=gs://bucket/run"), {}, "maps its features"),
        ("no run to begin from", _with("init=gs://bucket/none"), {}, "holds no run of ours"),
        ("no images", _with("data.source=folder:gs://bucket/none"), {}, "does not exist"),
        ("no arrays", _with("data.source=arrays:gs://bucket/none.npz"), {}, "no file gs://bucket/none.npz"),
        (
            "no token cache",
            _with("method.tokens=gs://bucket/none", "augment.flip=False"),
            {},
            "does not exist",
        ),
        (
            "packed images",
            _with("data.source=tfds:cifar10", "data.data_dir=gs://bucket/tfds"),
            {},
            "ArrayRecord",
        ),
        (
            "torch's file",
            lambda tmp: convert("gs://bucket/in.pt", tmp / "out.safetensors"),
            {"bucket/in.pt": b"x"},
            "bucket",
        ),
    )
]

CASES = [*WORKDIRS, *PATHS, *LOCKS, *LINKS, *FOLDERS, *TOKENS, *COMPARISONS, *CONVERTED, *BUCKETS]
