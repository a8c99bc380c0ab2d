"""Images that were replaced because they could not be read (data.on_bad_image=skip): counted and listed."""

from collections.abc import Iterable, Mapping

import jax
from etils.epath import Path

from mim_jax.config.check import ConfigError
from mim_jax.data import Dataset
from mim_jax.reading import Unreadable, mapping, read_json, text
from mim_jax.storage import write_json

FILE = "bad_images.json"
LISTED = 20


def remember(workdir: Path, sources: Iterable[Dataset]) -> dict[str, str]:
    """Name -> reason of the bad images this process has met, with those of earlier sessions; kept in the directory.

    Only the first process keeps the file; it has met those of its own part of the batches.
    """
    path = workdir / FILE
    known = _known(path)
    for dataset in sources:
        known |= getattr(dataset, "bad", {})
    if known and jax.process_index() == 0:
        write_json(path, known)
    return known


def _known(path: Path) -> dict[str, str]:
    try:
        known: dict[str, str] = read_json(path, mapping(text()))
    except Unreadable as error:
        if error.absent:
            return {}
        raise ConfigError(f"{path} is damaged ({error}): restore it, or move it away") from error
    return known


def as_text(bad: Mapping[str, str]) -> str:
    """For the console: the count, and the first few with their reasons."""
    if not bad:
        return ""
    lines = [f"{count(bad)} could not be read, replaced by others:"]
    lines += [f"  {where}: {reason}" for where, reason in listed(bad)]
    if len(bad) > LISTED:
        lines.append(f"  and {len(bad) - LISTED} more, in {FILE}")
    return "\n".join(lines)


def count(bad: Mapping[str, str]) -> str:
    return "1 image" if len(bad) == 1 else f"{len(bad):,} images"


def listed(bad: Mapping[str, str]) -> list[tuple[str, str]]:
    """The first few in the order of their names."""
    return sorted(bad.items())[:LISTED]
