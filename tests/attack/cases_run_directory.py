"""What is read back from the directory of a run: config.json, metrics.jsonl, sessions.json, bad_images.json, manifests."""

from collections.abc import Callable
from pathlib import Path

from tests.attack import base
from tests.attack.case import Act, Case, train

AREA = "run directory"


def _stopped(spoil: Callable[[Path], object]) -> Callable[[Path], Act]:
    """Resumes a run whose directory was spoilt."""

    def build(tmp: Path) -> Act:
        run = base.copy(base.STOPPED, tmp / "run")
        spoil(run)
        return train(run)

    return build


def _text(name: str, content: str) -> Callable[[Path], Act]:
    return _stopped(lambda run: (run / name).write_text(content))


CASES = [
    Case(AREA, "a stopped run goes on", _stopped(lambda run: None), accepted=True),
    *(
        Case(AREA, f"config.json {content}", _text("config.json", content))
        for content in ("null", "5", "[]", "{")
    ),
]
