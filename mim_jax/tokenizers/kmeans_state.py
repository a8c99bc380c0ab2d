"""Where a long k-means stands, on disk after every pass: one .npz, whole or not at all."""

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NAME = "kmeans.npz"


@dataclasses.dataclass(frozen=True)
class State:
    """After `iteration` moves of restart number `restart`; best_*: of the restarts that are finished."""

    restart: int
    iteration: int
    inertia: float  # of the last pass; infinite before the first
    centroids: npt.NDArray[np.float32]  # [k, d]; [0, d] before the restart has begun
    seen: npt.NDArray[np.float32]  # [k], of the mini-batch mode
    best_inertia: float
    best_centroids: npt.NDArray[np.float32]  # [k, d]; [0, d] before the first restart is finished
    best_counts: npt.NDArray[np.int64]  # [k] or [0]


def at_start(clusters: int, width: int) -> State:
    """Before the first restart."""
    none = np.zeros((0, width), np.float32)
    return State(0, 0, np.inf, none, np.zeros(clusters, np.float32), np.inf, none, np.zeros(0, np.int64))


def save(directory: Path, state: State, identity: Mapping[str, Any]) -> None:
    """Writes the state; a kill at any moment leaves the one before or this one."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{NAME}.partial"
    with partial.open("wb") as file:
        np.savez(file, identity=json.dumps(identity), **dataclasses.asdict(state))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, directory / NAME)


def load(directory: Path, identity: Mapping[str, Any]) -> State | None:
    """The state that lies there; None if none does.

    Raises:
        ValueError: it is damaged, or of a fit with another identity (options, points); says which.
    """
    path = directory / NAME
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        theirs = json.loads(str(found.pop("identity")))
        numbers = {name: found[name].item() for name in ("restart", "iteration", "inertia", "best_inertia")}
        state = State(**{**found, **numbers})
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to start anew") from error
    for name in sorted({*identity, *theirs}):
        if identity.get(name) != theirs.get(name):
            raise ValueError(
                f"{path} is of another k-means: its {name} is {theirs.get(name)}, here it is {identity.get(name)}; delete"
                " it or use another directory"
            )
    return state
