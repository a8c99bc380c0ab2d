"""What runs in the forked process of one case: build, act, and say on files how it ended."""

import contextlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path

from tests.attack.case import Case

OUTPUT, ERRORS, RESULT = "attack.stdout", "attack.stderr", "attack.json"
FILE_LIMIT = 4 << 30
"""Bytes a case may write into one file: a runaway must not fill the disk."""


class TrainingStarted(BaseException):
    """The first update was about to run: the input was accepted."""


def run(case: Case, tmp: Path) -> None:
    """Never returns."""
    code = 70
    try:
        _prepare(tmp)
        code = 0 if _report(tmp, _outcome(case, tmp)) else 70
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _prepare(tmp: Path) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, OUTPUT), (2, ERRORS)):
        opened = os.open(tmp.parent / f"{tmp.name}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    os.chdir(tmp)
    os.environ["HOME"], os.environ["XDG_CACHE_HOME"] = str(tmp / "home"), str(tmp / "home" / ".cache")


def _report(tmp: Path, outcome: dict[str, object]) -> bool:
    (tmp.parent / f"{tmp.name}.{RESULT}").write_text(json.dumps(outcome))
    return True


def _outcome(case: Case, tmp: Path) -> dict[str, object]:
    """state: returned (with a code) | raised ours | raised | broken (the case itself is)."""
    try:
        act = case.build(tmp)
    except BaseException:
        traceback.print_exc()
        return {"state": "broken"}
    from mim_jax.config.check import ConfigError
    from mim_jax.data import DataError
    from mim_jax.storage import StorageError
    from mim_jax.training.checkpoints import CheckpointError

    _stop_before_training()
    try:
        made = act()
    except TrainingStarted:
        return {"state": "returned", "code": 0, "training": True}
    except SystemExit as error:
        return {"state": "returned", "code": error.code}
    except (ConfigError, DataError, CheckpointError, StorageError) as error:
        # A function of the library: what a command would print.
        print(f"mim_jax: {error}", file=sys.stderr)
        return {"state": "returned", "code": 2}
    except BaseException:
        traceback.print_exc()
        return {"state": "raised"}
    return {"state": "returned", "code": made if isinstance(made, int) else 0}


def _stop_before_training() -> None:
    """The first update is not compiled: whoever comes so far has been accepted."""
    from mim_jax.tasks import train

    def instead(*_args: object, **_options: object) -> object:
        def started(_state: object, _batch: object) -> object:
            raise TrainingStarted

        return started

    train.make_train_step = instead  # type: ignore[assignment]
