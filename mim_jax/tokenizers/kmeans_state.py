"""Where a long k-means stands, on disk after every pass: one .npz, whole or not at all."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mim_jax.data.npy import Archive
from mim_jax.reading import Unreadable, mapping, parse_json
from mim_jax.storage import atomic_write, make_directory

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


_NAMES = sorted(["identity", *(field.name for field in dataclasses.fields(State))])


def _fault(state: State) -> str | None:
    """What keeps it from being a state that `save` wrote; None if nothing does."""
    counts = (state.restart, state.iteration)
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return f"restart {state.restart}, iteration {state.iteration}"
    if not all(isinstance(value, float) and value >= 0 for value in (state.inertia, state.best_inertia)):
        return f"inertia {state.inertia}, best {state.best_inertia}"
    for name, value, axes, kind in (
        ("centroids", state.centroids, 2, "f"),
        ("seen", state.seen, 1, "f"),
        ("best_centroids", state.best_centroids, 2, "f"),
        ("best_counts", state.best_counts, 1, "i"),
    ):
        if value.ndim != axes or value.dtype.kind != kind or not np.isfinite(value).all():
            return f"{name} are {value.dtype} {list(value.shape)}, or not finite"
    return None


def at_start(clusters: int, width: int) -> State:
    """Before the first restart."""
    none = np.zeros((0, width), np.float32)
    return State(0, 0, np.inf, none, np.zeros(clusters, np.float32), np.inf, none, np.zeros(0, np.int64))


def save(directory: Path, state: State, identity: Mapping[str, Any]) -> None:
    """Writes the state; a kill at any moment leaves the one before or this one."""
    make_directory(directory)
    with atomic_write(directory / NAME) as file:
        np.savez(file, identity=json.dumps(identity), **dataclasses.asdict(state))


def load(directory: Path, identity: Mapping[str, Any]) -> State | None:
    """The state that lies there; None if none does.

    Raises:
        ValueError: it is damaged, or of a fit with another identity (options, points); says which.
    """
    path = directory / NAME
    try:
        with Archive(path) as arrays:
            found = {name: arrays.load(name) for name in arrays.names}
        if sorted(found) != _NAMES:
            raise Unreadable(f"it holds {', '.join(sorted(found))}")
        theirs = parse_json(str(found.pop("identity")), mapping())
        numbers = {name: found[name].item() for name in ("restart", "iteration", "inertia", "best_inertia")}
        state = State(**{**found, **numbers})
        if (fault := _fault(state)) is not None:
            raise Unreadable(fault)
    except (Unreadable, ValueError) as error:
        if isinstance(error, Unreadable) and error.absent:
            return None
        reason = error if isinstance(error, Unreadable) else "a number of it has a shape"
        raise ValueError(f"{path} is damaged ({reason}): delete it to start anew") from error
    for name in sorted({*identity, *theirs}):
        if identity.get(name) != theirs.get(name):
            raise ValueError(
                f"{path} is of another k-means: its {name} is {theirs.get(name)}, here it is {identity.get(name)}; delete"
                " it or use another directory"
            )
    return state
