"""A checkpoint's manifest, with a checksum that fits, and files that are not what it says."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attack import base, odd
from tests.attack.case import Act, Case
from tests.attack.cases_run_directory import loaded

AREA = "checkpoint"


def _loaded(spoil: Callable[[Path], object]) -> Callable[[Path], Act]:
    """Loads a finished run whose only checkpoint was spoilt."""

    def build(tmp: Path) -> Act:
        run = base.copy(base.FINISHED, tmp / "run")
        *others, newest = sorted((run / "checkpoints").iterdir())
        for other in others:
            odd.remove(other)
        spoil(newest)
        return loaded(run)

    return build


def _signed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Act]:
    """The manifest says something else, and has the right checksum of that."""

    def spoil(checkpoint: Path) -> None:
        path = checkpoint / "manifest.json"
        body = json.loads(path.read_text())
        del body["sha256"]
        change(body)
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({**body, "sha256": digest}))

    return _loaded(spoil)


def _leaf(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda body: next(iter(body["leaves"].values())).update(values)


def _file(name: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda body: body["files"].update({name: {"size": 1, "crc32c": 0, "sha256": "0", **values}})


BODIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no format": lambda body: body.pop("format"),
    "a format that is a text": lambda body: body.update(format="one"),
    "another format": lambda body: body.update(format=2),
    "no step": lambda body: body.pop("step"),
    "a step that is a text": lambda body: body.update(step="four"),
    "a step that is not the directory's": lambda body: body.update(step=3),
    "a negative step": lambda body: body.update(step=-4),
    "no leaves": lambda body: body.pop("leaves"),
    "leaves that are a list": lambda body: body.update(leaves=[]),
    "a leaf that is null": lambda body: body["leaves"].update({next(iter(body["leaves"])): None}),
    "a shape that is a text": _leaf(shape="big"),
    "a shape of texts": _leaf(shape=["a"]),
    "a negative shape": _leaf(shape=[-1, 2]),
    "a shape of 10**30": _leaf(shape=[10**30]),
    "no shape": lambda body: next(iter(body["leaves"].values())).pop("shape"),
    "a dtype that is a number": _leaf(dtype=5),
    "an unknown dtype": _leaf(dtype="float99"),
    "a leaf inside a leaf": lambda body: body["leaves"].update({f"{next(iter(body['leaves']))}/a": {"shape": [], "dtype": "float32"}}),
    "no metrics": lambda body: body.pop("metrics"),
    "metrics that are a list": lambda body: body.update(metrics=[1]),
    "a metric that is a text": lambda body: body.update(metrics={"eval/loss": "low"}),
    "no files": lambda body: body.pop("files"),
    "files that are a list": lambda body: body.update(files=["a"]),
    "a file that is null": lambda body: body["files"].update({next(iter(body["files"])): None}),
    "a size that is a text": lambda body: next(iter(body["files"].values())).update(size="big"),
    "a file above the directory": _file("../../config.json"),
    "an absolute file": _file("/etc/passwd"),
    "a device": _file("/dev/zero"),
    "a file of no name": _file(""),
    "files that leave all out": lambda body: body.update(files={}),
}  # fmt: skip

CASES = [
    Case(AREA, "whole", _loaded(lambda checkpoint: None), accepted=True),
    *(Case(AREA, f"manifest.json: {name}", _loaded(lambda checkpoint, put=put: put(checkpoint / "manifest.json")), seconds=8.0) for name, put in odd.KINDS.items()),
    *(Case(AREA, f"manifest.json: {name}", _loaded(lambda checkpoint, text=text: (checkpoint / "manifest.json").write_text(text))) for name, text in odd.TEXTS.items()),
    *(Case(AREA, f"a signed manifest with {name}", _signed(change)) for name, change in BODIES.items()),
]  # fmt: skip


def _biggest(checkpoint: Path) -> Path:
    return max(
        (path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


CASES += [
    Case(
        AREA,
        f"the biggest file: {name}",
        _loaded(lambda checkpoint, put=put: put(_biggest(checkpoint))),
        seconds=8.0,
    )
    for name, put in odd.KINDS.items()
]
