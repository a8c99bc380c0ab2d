"""Forks a process per case, watches its time and memory, and says how each ended.

The program is imported once, here, and no backend of jax is started: a fork of a process with a running backend may hang.
"""

import contextlib
import dataclasses
import gc
import importlib.util
import json
import os
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.attack import child
from tests.attack.case import CANARY, Case

SENTENCE, ACCEPTED = "sentence", "accepted"
TRACEBACK, HANG, MEMORY, WRONG, BROKEN = "traceback", "hang", "memory", "wrongly accepted", "broken case"
OUTCOMES = (SENTENCE, ACCEPTED, TRACEBACK, HANG, MEMORY, WRONG, BROKEN)
FAILURES = (TRACEBACK, HANG, MEMORY, WRONG, BROKEN)

IDLE = 0.1
"""Share of the time below which a process computes nothing: one that waits for its turn on a busy machine has more."""
LONGEST_WAIT = 6
"""Times the seconds of a case after which it hangs, however busy the machine."""
POLL = 0.02
LONGEST = 700
"""Characters of a sentence: paths of a case are long."""
INTERNALS = re.compile(
    r"0x[0-9a-f]{6,}|site-packages|File \"|<class '|object at |XlaRuntimeError|jax\.errors|allow_pickle|_pickle|Unpickl"
    r"|tensorstore|jaxlib|\bdataclass\b|__\w+__|NoneType|JSONDecodeError|not subscriptable|has no attribute|weights_only"
    r"|unexpected keyword|positional argument|max_rows|literal for int|could not convert|recursion|codec can't decode"
)
"""What only the inside of a library speaks of."""
LOGGED = re.compile(r"[WI]\d{4} \d\d:\d\d:\d\d|WARNING: Logging before flag parsing")
"""Lines of the log, which may say more than the sentence: why each checkpoint was refused."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a case ended. detail: the sentence, or the last lines of what it printed."""

    case: Case
    outcome: str
    detail: str
    seconds: float


@dataclasses.dataclass
class _Running:
    case: Case
    tmp: Path
    pid: int
    started: float
    memory: int


def load_program() -> None:
    """Imports all that the cases run, once."""
    from absl import logging

    import mim_jax.compare.__main__
    import mim_jax.library
    import mim_jax.main
    import mim_jax.tasks.tokenize  # noqa: F401

    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    if importlib.util.find_spec("torch") is not None:  # cases that need it say so
        import torch  # noqa: F401
    warnings.filterwarnings("ignore", message=r".*fork\(\).*")
    gc.collect()
    gc.freeze()


def attack(
    cases: Iterable[Case], folder: Path, jobs: int = 2, told: Callable[[Ended], None] = lambda ended: None
) -> list[Ended]:
    """Runs every case, `jobs` at a time, each in a directory of its own under `folder`; they are removed."""
    waiting, running, ended = iter(enumerate(cases)), [], []
    while True:
        while len(running) < jobs and (following := next(waiting, None)) is not None:
            running.append(_start(following[1], folder / f"{following[0]:04d}"))
        if not running:
            return ended
        for one in list(running):
            if (result := _look(one)) is not None:
                running.remove(one)
                ended.append(result)
                told(result)
        time.sleep(POLL)


def _start(case: Case, tmp: Path) -> _Running:
    tmp.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        child.run(case, tmp)
    return _Running(case, tmp, pid, time.monotonic(), _resident(pid))


def _resident(pid: int) -> int:
    """Bytes; 0 once the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _computed(pid: int) -> float:
    """Seconds of processor time."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _hangs(limit: float, seconds: float, computed: float) -> bool:
    waits = seconds > limit and computed < IDLE * seconds
    return waits or computed > limit or seconds > LONGEST_WAIT * limit


def _look(one: _Running) -> Ended | None:
    """The end of a case, if it has ended, or must be made to."""
    seconds = time.monotonic() - one.started
    found, status = os.waitpid(one.pid, os.WNOHANG)
    if found:
        _stop_group(one.pid)
        outcome, detail = _judged(one, status)
    elif _hangs(one.case.seconds, seconds, _computed(one.pid)):
        outcome, detail = HANG, _stopped(one)
    elif _resident(one.pid) - one.memory > one.case.memory:
        outcome, detail = MEMORY, _stopped(one)
    else:
        return None
    if (one.tmp / CANARY).exists():
        outcome, detail = WRONG, f"a pickle was executed; {detail}"
    _remove(one.tmp)
    return Ended(one.case, outcome, detail, seconds)


def _stop_group(pid: int) -> None:
    """Ends what a case has started: it was the leader of a session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing was left
        os.killpg(pid, signal.SIGKILL)


def _stopped(one: _Running) -> str:
    _stop_group(one.pid)
    os.kill(one.pid, signal.SIGKILL)
    os.waitpid(one.pid, 0)
    return _printed(one, child.ERRORS)[-600:]


def _printed(one: _Running, name: str) -> str:
    path = one.tmp.parent / f"{one.tmp.name}.{name}"
    return path.read_text(errors="replace") if path.exists() else ""


def _judged(one: _Running, status: int) -> tuple[str, str]:
    text = _printed(one, child.ERRORS)
    found = _printed(one, child.RESULT)
    if os.WIFSIGNALED(status) or not found:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no result"
        return TRACEBACK, f"{how}: {text[-600:]}"
    result = json.loads(found)
    if result["state"] != "returned":
        return (BROKEN if result["state"] == "broken" else TRACEBACK), text[-1500:]
    if result["code"] == 0:
        wanted = one.case.accepted
        detail = "training starts" if result.get("training") else "exit code 0"
        return (ACCEPTED if wanted else WRONG), detail
    if (fault := _fault(one.case, result["code"], text)) is None:
        return SENTENCE, text.strip()
    return TRACEBACK, f"{fault}: {text[-1500:]}"


def _fault(case: Case, code: object, text: str) -> str | None:
    """What keeps the errors of a refusal from being one sentence for the user; None if nothing does."""
    lines = [line for line in text.strip().splitlines() if not LOGGED.match(line)] or [""]
    inside = INTERNALS.search(lines[0])
    faults = {
        f"refused with {code!r} what is legitimate": case.accepted,
        f"exit code {code!r}, not 2": code != 2,
        "not one line on stderr": len(lines) != 1,
        "not 'mim_jax: ...' on stderr": not lines[0].startswith("mim_jax: "),
        f"speaks of {inside and inside[0]!r}": inside is not None,
        f"a sentence of {len(lines[0])} characters": len(lines[0]) > LONGEST,
        f"does not say {case.says!r}": re.search(case.says, lines[0]) is None,
    }
    return next((fault for fault, found in faults.items() if found), None)


def _remove(tmp: Path) -> None:
    """The directory, whatever rights were taken from it, and what the case printed."""
    for inside, folders, _files in os.walk(tmp):
        for name in folders:
            path = Path(inside, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(tmp, ignore_errors=True)
    for name in (child.OUTPUT, child.ERRORS, child.RESULT):
        (tmp.parent / f"{tmp.name}.{name}").unlink(missing_ok=True)


def table(ended: Iterable[Ended]) -> Iterator[str]:
    """Lines: outcomes by area, and then every failure."""
    done = list(ended)
    areas = sorted({one.case.area for one in done})
    width = max([len(area) for area in areas] + [5])
    yield f"{'area':{width}}  {'cases':>5}  " + "  ".join(OUTCOMES)
    for area in [*areas, "all"]:
        there = [one for one in done if area in ("all", one.case.area)]
        counts = [sum(one.outcome == outcome for one in there) for outcome in OUTCOMES]
        shown = "  ".join(f"{count:>{len(outcome)}}" for count, outcome in zip(counts, OUTCOMES, strict=True))
        yield f"{area:{width}}  {len(there):>5}  {shown}"
    for one in done:
        if one.outcome in FAILURES:
            yield (
                f"\n{one.outcome.upper()}: {one.case.area} / {one.case.name} ({one.seconds:.1f} s)\n    "
                + "\n    ".join(one.detail.strip().splitlines())
            )
