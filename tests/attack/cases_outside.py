"""Image folders with links, token caches, comparisons, files to convert, buckets: nothing outside is changed."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests import bucket
from tests.attack import base, odd
from tests.attack.case import ROOT, Act, Case, compare, convert, main, tokenize
from tests.attack.cases_safety import AREA, OURS, PLACES, Make, guarded, model, with_overrides


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
            from mim_jax.data import open_dataset

            found = open_dataset(f"folder:{root}", "train", cache_dir=str(tmp / "cache"))
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
        ("no run to begin from", with_overrides("init=gs://bucket/none"), {}, "holds no run of ours"),
        ("no images", with_overrides("data.source=folder:gs://bucket/none"), {}, "does not exist"),
        (
            "no arrays",
            with_overrides("data.source=arrays:gs://bucket/none.npz"),
            {},
            "no file gs://bucket/none.npz",
        ),
        (
            "no token cache",
            with_overrides("method.tokens=gs://bucket/none", "augment.flip=False"),
            {},
            "does not exist",
        ),
        (
            "packed images",
            with_overrides("data.source=tfds:cifar10", "data.data_dir=gs://bucket/tfds"),
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

CASES = [*FOLDERS, *TOKENS, *COMPARISONS, *CONVERTED, *BUCKETS]
