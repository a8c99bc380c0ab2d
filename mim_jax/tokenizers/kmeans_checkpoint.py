"""The state of a long k-means, saved after every pass: one .npz file, complete or absent."""

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

FILE_NAME = "kmeans.npz"


@dataclasses.dataclass(frozen=True)
class KMeansState:
    """After `iteration` moves of restart number `restart`; best_*: of the restarts that are finished."""

    restart: int
    iteration: int
    inertia: float  # of the last pass; infinite before the first
    centroids: npt.NDArray[np.float32]  # [k, d]; [0, d] before the restart has begun
    seen: npt.NDArray[np.float32]  # [k], of the mini-batch mode
    best_inertia: float
    best_centroids: npt.NDArray[np.float32]  # [k, d]; [0, d] before the first restart is finished
    best_counts: npt.NDArray[np.int64]  # [k] or [0]


_ENTRIES = sorted(["identity", *(field.name for field in dataclasses.fields(KMeansState))])


def _invalid(state: KMeansState) -> str | None:
    """Why `save` cannot have written this state; None if it can."""
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


def initial_state(clusters: int, width: int) -> KMeansState:
    """Before the first restart."""
    no_centroids = np.zeros((0, width), np.float32)
    return KMeansState(
        0,
        0,
        np.inf,
        no_centroids,
        np.zeros(clusters, np.float32),
        np.inf,
        no_centroids,
        np.zeros(0, np.int64),
    )


def save(directory: Path, state: KMeansState, identity: Mapping[str, Any]) -> None:
    """Writes the state; a kill at any moment leaves the one before or this one."""
    make_directory(directory)
    with atomic_write(directory / FILE_NAME) as file:
        np.savez(file, identity=json.dumps(identity), **dataclasses.asdict(state))


def restore(directory: Path, identity: Mapping[str, Any]) -> KMeansState | None:
    """The state saved in a directory; None if there is none.

    Raises:
        ValueError: it is damaged, or of a fit with another identity (options, points); says which.
    """
    path = directory / FILE_NAME
    try:
        with Archive(path) as arrays:
            entries = {name: arrays.load(name) for name in arrays.names}
        if sorted(entries) != _ENTRIES:
            raise Unreadable(f"it holds {', '.join(sorted(entries))}")
        saved_identity = parse_json(str(entries.pop("identity")), mapping())
        numbers = {name: entries[name].item() for name in ("restart", "iteration", "inertia", "best_inertia")}
        state = KMeansState(**{**entries, **numbers})
        if (problem := _invalid(state)) is not None:
            raise Unreadable(problem)
    except (Unreadable, ValueError) as error:
        if isinstance(error, Unreadable) and error.absent:
            return None
        reason = error if isinstance(error, Unreadable) else "a number of it has a shape"
        raise ValueError(f"{path} is damaged ({reason}): delete it to start anew") from error
    for name in sorted({*identity, *saved_identity}):
        if identity.get(name) != saved_identity.get(name):
            raise ValueError(
                f"{path} is of another k-means: its {name} is {saved_identity.get(name)}, here it is {identity.get(name)}; delete"
                " it or use another directory"
            )
    return state
