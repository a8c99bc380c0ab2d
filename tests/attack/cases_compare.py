"""Results that a comparison reads back: DIR/results/*.json, and what its runs left."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attack import odd
from tests.attack.case import ROOT, Act, Case, compare
from tests.attack.cases_images import picture

AREA = "compare"
RECORD: dict[str, Any] = {
    "stage": "pretrain",
    "status": "failed",
    "command": "python",
    "config": {},
    "log": "log.txt",
    "pid": None,
    "reason": "it failed",
    "seconds": 1.0,
    "finished": "2025-01-01 00:00:00",
    "values": {"train/loss": 1.0},
    "versions": {"jax": "1"},
}


def _pictures(folder: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for number in range(3):
                (folder / split / label / f"{number}.png").write_bytes(picture(seed=number))


def _results(put: Callable[[Path], object]) -> Callable[[Path], Act]:
    """A comparison whose directory holds this result. Its settings are wrong, so that nothing is ever trained."""

    def build(tmp: Path) -> Act:
        from etils import epath

        from mim_jax.compare.__main__ import TASK
        from mim_jax.storage.marker import Marker, write_marker

        results = tmp / "comparison" / "results"
        results.mkdir(parents=True)
        write_marker(epath.Path(results.parent), Marker(TASK))
        put(results / "mae-0-pretrain.json")
        _pictures(tmp / "pictures")
        os.chdir(ROOT)  # a comparison names its configurations by relative paths
        return compare(
            [
                f"--config={ROOT / 'configs' / 'compare.py'}",
                f"--workdir={tmp / 'comparison'}",
                f"--config.data={tmp / 'pictures'}",
                "--config.only=mae",
            ]
        )

    return build


def _text(content: str) -> Callable[[Path], Act]:
    return _results(lambda path: path.write_text(content))


def _record(**values: Any) -> Callable[[Path], Act]:
    return _text(json.dumps({**RECORD, **values}))


CASES = [
    *(Case(AREA, f"a result: {name}", _results(put), "results", seconds=8.0) for name, put in odd.KINDS.items()),
    *(Case(AREA, f"a result: {name}", _text(content), "results") for name, content in odd.TEXTS.items()),
    Case(AREA, "a result without a status", _text(json.dumps({key: value for key, value in RECORD.items() if key != "status"})), "status"),
    Case(AREA, "a result with an unknown key", _record(extra=1), "extra"),
    Case(AREA, "a result of an unknown status", _record(status="almost"), "status"),
    Case(AREA, "a config that is a list", _record(config=[1]), "config"),
    Case(AREA, "values that are texts", _record(values={"train/loss": "low"}), "values"),
    Case(AREA, "values that are a list", _record(values=[1]), "values"),
    Case(AREA, "a pid that is a text", _record(pid="1; rm"), "pid"),
    Case(AREA, "negative seconds", _record(seconds=-1.0), "seconds"),
    Case(AREA, "versions of numbers", _record(versions={"jax": 1}), "versions"),
    Case(AREA, "no configuration", lambda tmp: compare([f"--workdir={tmp}"]), "config"),
    Case(AREA, "no directory", lambda tmp: compare([f"--config={ROOT / 'configs' / 'compare.py'}"]), "workdir"),
    Case(AREA, "jobs of 0", lambda tmp: compare([f"--config={ROOT / 'configs' / 'compare.py'}", f"--workdir={tmp / 'x'}", "--jobs=0"]), "jobs"),
    Case(AREA, "jobs that are a word", lambda tmp: compare([f"--config={ROOT / 'configs' / 'compare.py'}", f"--workdir={tmp / 'x'}", "--jobs=many"]), "jobs"),
    Case(AREA, "a configuration of a run", lambda tmp: compare([f"--config={ROOT / 'configs' / 'mapet.py'}", f"--workdir={tmp / 'x'}"]), ""),
    Case(AREA, "an unknown arm", lambda tmp: compare([f"--config={ROOT / 'configs' / 'compare.py'}", f"--workdir={tmp / 'x'}", "--config.only=nobody"]), "nobody"),
    Case(AREA, "a file in place of the directory", lambda tmp: [(tmp / "x").write_text("mine"), compare([f"--config={ROOT / 'configs' / 'compare.py'}", f"--workdir={tmp / 'x'}"])][1], "x"),
]  # fmt: skip
