"""One attack: what is prepared in a directory of its own, and what is then run against it."""

import dataclasses
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary"
"""Name, in the directory of a case, of what appears there when a pickle of `canary` is executed."""

Act = Callable[[], object]
"""Gives a command's exit code, or anything where no error is raised."""


@dataclasses.dataclass(frozen=True)
class Case:
    """build: given the case's own empty directory (also the current one), prepares files and gives what is to be run.

    says: a regular expression that the sentence must hold. accepted: legitimate, so it must go through; training is cut
    off at its first update. seconds: of computing, or of waiting for nothing, after which it hangs. memory: bytes above what the
    process had at its start, after which it is too much.
    """

    area: str
    name: str
    build: Callable[[Path], Act]
    says: str = ""
    accepted: bool = False
    seconds: float = 20.0
    memory: int = 4 << 30


def config_file(name: str = "mapet") -> Path:
    """A configuration of the repository, by an absolute path: a case runs in a directory of its own."""
    return ROOT / "configs" / f"{name.partition(':')[0]}.py"


SMALL = (
    "model.variant=mu",
    "schedule.steps=4",
    "schedule.warmup_steps=1",
    "data.batch_size=16",
    "eval.heldout_examples=0",
    "eval.knn=False",
    "eval.baselines=False",
    "data.threads=1",
)
MAPET = ("method.vocabulary=16", "method.kmeans_patches=500")


def train(workdir: Path, *overrides: str, config: str = "mapet", flags: Sequence[str] = ()) -> Act:
    """python -m mim_jax.main on a small configuration. overrides: "section.key=value"."""
    name, _, preset = config.partition(":")
    chosen = f"{config_file(name)}:{preset}" if preset else str(config_file(name))
    given = [*SMALL, *(MAPET if name == "mapet" else ()), *overrides]
    last = {text.partition("=")[0]: text for text in given}  # a later value replaces an earlier one
    return main(
        [
            f"--config={chosen}",
            *(f"--config.{text}" for text in last.values()),
            f"--workdir={workdir}",
            *flags,
        ]
    )


def main(argv: Sequence[str]) -> Act:
    """python -m mim_jax.main ARGV."""

    def act() -> object:
        from mim_jax import main as front_door

        return front_door.run(argv)

    return act


def tokenize(argv: Sequence[str]) -> Act:
    """python -m mim_jax.tokenize ARGV."""

    def act() -> object:
        from mim_jax.tasks import tokenize as command

        return command.run(list(argv))

    return act


def convert(*argv: object) -> Act:
    """python -m mim_jax.convert_torch ARGV."""

    def act() -> object:
        from mim_jax.tasks import convert_torch

        return convert_torch.run([str(one) for one in argv])

    return act


def compare(argv: Sequence[str]) -> Act:
    """python -m mim_jax.compare ARGV."""

    def act() -> object:
        from mim_jax.compare.__main__ import run

        return run(list(argv))

    return act


class _Canary:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._marker),)


def canary(tmp: Path, protocol: int = 2) -> bytes:
    """A pickle that leaves a marker in the case's directory if anything executes it."""
    return pickle.dumps({"weight": _Canary(tmp / CANARY)}, protocol)


def canary_object(tmp: Path) -> object:
    """For a numpy array of objects, or torch.save."""
    return _Canary(tmp / CANARY)
