"""How long a run took over all its sessions: sessions.json, one entry for every start of the command."""

import time
from collections.abc import Mapping
from typing import Any

from etils.epath import Path

from mim_jax.config.check import ConfigError
from mim_jax.reading import Unreadable, listed, number, read_json, record, whole
from mim_jax.storage import write_json

FILE = "sessions.json"
PERIOD = 5.0
"""Seconds between two updates of the file: at most so much of a killed session is not counted."""

_SESSIONS = listed(
    record(
        {"seconds": number(0.0, 1e12)},
        {"started": number(0.0), "first_step": whole(0), "last_step": whole(0)},
    )
)


class Session:
    """A sink that looks at the clock instead of the values."""

    def __init__(self, workdir: Path, *, first_step: int, started: float) -> None:
        self._path, self._started, self._written = workdir / FILE, started, 0.0
        self._earlier = read_sessions(workdir)
        self._now: dict[str, Any] = {"started": started, "first_step": first_step, "last_step": first_step}
        self._keep()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._now["last_step"] = step
        if time.time() - self._written > PERIOD:
            self._keep()

    def close(self) -> None:
        self._keep()

    def _keep(self) -> None:
        self._written = time.time()
        self._now["seconds"] = self._written - self._started
        write_json(self._path, [*self._earlier, self._now])


def read_sessions(workdir: Path) -> list[dict[str, Any]]:
    """started (seconds since 1970), seconds, first_step and last_step of every session so far."""
    path = workdir / FILE
    try:
        sessions: list[dict[str, Any]] = read_json(path, _SESSIONS)
    except Unreadable as error:
        if error.absent:
            return []
        raise ConfigError(f"{path} is damaged ({error}): restore it, or move it away") from error
    return sessions


def describe(workdir: Path) -> str:
    """'1:02:03 in 2 sessions'."""
    sessions = read_sessions(workdir)
    seconds = round(sum(session["seconds"] for session in sessions))
    count = "1 session" if len(sessions) == 1 else f"{len(sessions)} sessions"
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} (h:mm:ss) in {count}"
