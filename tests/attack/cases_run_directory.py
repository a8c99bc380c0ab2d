"""What is read back from the directory of a run: config.json, metrics.jsonl, sessions.json, bad_images.json, wandb.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attack import base, odd
from tests.attack.case import Act, Case, train

AREA = "run directory"
WAIT = 8.0
"""Seconds after which a read that waits is a hang."""


def spoilt(spoil: Callable[[Path], object], begin: str = base.STOPPED) -> Callable[[Path], Act]:
    """Resumes a run, or shows a finished one, whose directory was spoilt."""

    def build(tmp: Path) -> Act:
        run = base.copy(begin, tmp / "run")
        spoil(run)
        return train(run)

    return build


def _put(name: str, put: odd.Put, begin: str = base.STOPPED) -> Callable[[Path], Act]:
    return spoilt(lambda run: put(run / name), begin)


def _config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Act]:
    """Loads a run whose config.json was changed: everything it says is used."""

    def build(tmp: Path) -> Act:
        run = base.copy(base.FINISHED, tmp / "run")
        tree = json.loads((run / "config.json").read_text())
        change(tree)
        (run / "config.json").write_text(json.dumps(tree))
        return loaded(run)

    return build


def loaded(run: Path, **options: Any) -> Act:
    """mim_jax.load(run)."""

    def act() -> object:
        import mim_jax

        mim_jax.load(run, **options)
        return 0

    return act


def _set(section: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda tree: tree[section].update(values)


CONFIGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown section": lambda tree: tree.update(extra={"a": 1}),
    "an unknown key": _set("optim", lrr=1.0),
    "a section that is null": lambda tree: tree.update(optim=None),
    "a section that is a list": lambda tree: tree.update(optim=[1]),
    "a section that is a number": lambda tree: tree.update(model=3),
    "method null": lambda tree: tree.update(method=None),
    "method a list": lambda tree: tree.update(method=["mapet"]),
    "method without a name": lambda tree: tree["method"].pop("name"),
    "a method's name that is a number": _set("method", name=3),
    "an unknown method": _set("method", name="../mapet"),
    "an unknown key of the method": _set("method", extra=1),
    "a text for a width": _set("model", width="wide"),
    "a fraction for a width": _set("model", width=32.5),
    "a negative depth": _set("model", depth=-2),
    "a list for a depth": _set("model", depth=[2]),
    "an image size of three": _set("model", image_size=[8, 8, 8]),
    "an image size of texts": _set("model", image_size=["a", "b"]),
    "another width than the checkpoint's": _set("model", width=64),
    "another depth than the checkpoint's": _set("model", depth=3),
    "a huge vocabulary": _set("method", vocabulary=10**15),
    "a seed of 30 digits": lambda tree: tree.update(seed=10**30),
    "a task that is an object": lambda tree: tree.update(task={}),
    "an unknown data type": _set("model", dtype="float99"),
}

LINE = '{"step": 1, "train/loss": 2.5, "train/lr": 0.1}\n'
METRICS: dict[str, str] = {
    "a line without a step": LINE + '{"train/loss": 2.0}\n' + LINE,
    "a step that is a text": LINE + '{"step": "one"}\n' + LINE,
    "a step that is a fraction": LINE + '{"step": 1.5}\n' + LINE,
    "a negative step": LINE + '{"step": -1}\n' + LINE,
    "a step of 400 digits": LINE + '{"step": 1' + "0" * 400 + "}\n" + LINE,
    "a value of 9000 digits": LINE + '{"step": 2, "train/loss": 1' + "0" * 9000 + "}\n" + LINE,
    "a value that is a text": LINE + '{"step": 2, "train/loss": "low"}\n' + LINE,
    "a value that is a list": LINE + '{"step": 2, "train/loss": [1, 2]}\n' + LINE,
    "a value that is null": LINE + '{"step": 2, "train/loss": null}\n' + LINE,
    "a line that is a number": LINE + "7\n" + LINE,
    "a line that is null": LINE + "null\n" + LINE,
    "a line cut short in the middle": LINE + '{"step": 2, "tr\n' + LINE,
    "deep lines": LINE + "[" * 50_000 + "\n" + LINE,
}

SESSIONS: dict[str, str] = {
    "an object": "{}",
    "a list of texts": '["a"]',
    "seconds missing": '[{"started": 1.0}]',
    "seconds a text": '[{"seconds": "long"}]',
    "seconds NaN": '[{"seconds": NaN}]',
    "seconds infinite": '[{"seconds": 1e999}]',
    "seconds negative": '[{"seconds": -5.0, "started": 1.0}]',
}

CASES = [
    Case(AREA, "a stopped run goes on", spoilt(lambda run: None), accepted=True),
    Case(AREA, "a finished run is shown", spoilt(lambda run: None, base.FINISHED), accepted=True),
    Case(
        AREA, "metrics.jsonl whose last line a kill cut short", accepted=True,
        build=_put("metrics.jsonl", odd.bytes_of(LINE + '{"step": 2, "tra')),
    ),
    Case(AREA, "no metrics.jsonl", spoilt(lambda run: (run / "metrics.jsonl").unlink()), accepted=True),
    Case(AREA, "no sessions.json", spoilt(lambda run: (run / "sessions.json").unlink()), accepted=True),
    *(Case(AREA, f"config.json: {name}", _put("config.json", put), "config.json", seconds=WAIT) for name, put in odd.KINDS.items()),
    *(Case(AREA, f"config.json: {name}", _put("config.json", odd.bytes_of(text)), "config.json") for name, text in odd.TEXTS.items()),
    *(Case(AREA, f"config.json with {name}", _config(change)) for name, change in CONFIGS.items()),
    *(
        Case(AREA, f"metrics.jsonl: {name}", _put("metrics.jsonl", put), "metrics.jsonl", seconds=WAIT)
        for name, put in odd.KINDS.items()
        if name not in ("zero bytes", "not UTF-8")  # the only line: as cut short by a kill
    ),
    Case(AREA, "metrics.jsonl: not UTF-8 in the middle", _put("metrics.jsonl", odd.bytes_of(b'{"step": 1, "\xff": 1}\n' + LINE.encode())), "metrics.jsonl"),
    *(Case(AREA, f"metrics.jsonl: {name}", _put("metrics.jsonl", odd.bytes_of(text)), "metrics.jsonl") for name, text in METRICS.items()),
    *(Case(AREA, f"a finished run's metrics.jsonl: {name}", _put("metrics.jsonl", odd.bytes_of(METRICS[name]), base.FINISHED), "metrics.jsonl") for name in ("a line without a step", "a value that is a text", "a line that is null")),
    *(Case(AREA, f"sessions.json: {name}", _put("sessions.json", put), "sessions.json", seconds=WAIT) for name, put in odd.KINDS.items()),
    *(Case(AREA, f"sessions.json: {name}", _put("sessions.json", odd.bytes_of(text)), "sessions.json") for name, text in SESSIONS.items()),
    *(Case(AREA, f"sessions.json: {name}", _put("sessions.json", odd.bytes_of(text)), "sessions.json") for name, text in odd.TEXTS.items()),
    *(Case(AREA, f"bad_images.json: {name}", _put("bad_images.json", put, base.FINISHED), "bad_images.json", seconds=WAIT) for name, put in odd.KINDS.items()),
    *(
        Case(AREA, f"bad_images.json: {name}", _put("bad_images.json", odd.bytes_of(text), base.FINISHED), "bad_images.json")
        for name, text in {**odd.TEXTS, "a number as a reason": '{"a.jpg": 1}', "a list as a reason": '{"a.jpg": []}'}.items()
    ),
]  # fmt: skip


def _wandb(put: odd.Put) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        from mim_jax.training.monitoring.metric_writers import run_id

        put(tmp / "wandb.json")
        return lambda: run_id(tmp) and 0

    return build


CASES += [
    Case(AREA, f"wandb.json: {name}", _wandb(put), "wandb.json", seconds=WAIT)
    for name, put in odd.KINDS.items()
]
CASES += [
    Case(AREA, f"wandb.json: {name}", _wandb(odd.bytes_of(text)), "wandb.json")
    for name, text in {
        "null": "null", "no id": "{}", "an id that is a number": '{"id": 3}', "a path as id": '{"id": "../../x"}',
        "deep": odd.TEXTS["deep lists"],
    }.items()
]  # fmt: skip
