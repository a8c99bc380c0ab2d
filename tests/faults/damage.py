"""Ways in which a checkpoint's directory is damaged, at random places."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path


def _files(step: Path) -> list[Path]:
    """What a checkpoint is made of: all but Orbax's own notes beside it, which restoring does not read."""
    notes = ("_CHECKPOINT_METADATA", "commit_success.txt")
    return [
        path
        for path in sorted(step.rglob("*"))
        if path.is_file() and not (path.parent == step and path.name in notes)
    ]


def _largest(step: Path) -> Path:
    return max(_files(step), key=lambda path: path.stat().st_size)


def _truncate(step: Path, draw: random.Random) -> None:
    path = _largest(step)
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _empty(step: Path, draw: random.Random) -> None:
    draw.choice([path for path in _files(step) if path.stat().st_size]).write_bytes(b"")


def flip_bit(step: Path, draw: random.Random) -> None:
    """Flips one bit of one file."""
    path = draw.choice(_files(step))
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _half_delete(step: Path, draw: random.Random) -> None:
    found = _files(step)
    for path in draw.sample(found, len(found) // 2):
        path.unlink()


def _delete_manifest(step: Path, draw: random.Random) -> None:
    (step / "manifest.json").unlink()


def _delete_contents(step: Path, draw: random.Random) -> None:
    shutil.rmtree(step)
    step.mkdir()


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "newest truncated": _truncate,
    "a file of the newest emptied": _empty,
    "one bit of the newest flipped": flip_bit,
    "half the newest's files deleted": _half_delete,
    "the newest's manifest deleted": _delete_manifest,
    "the newest's directory emptied": _delete_contents,
}
