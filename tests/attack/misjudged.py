"""Cases that behave badly on purpose: what the harness must call each of them (test_harness.py)."""

import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.attack.case import Act, Case, canary


def _always(act: Act) -> Callable[[Path], Act]:
    return lambda tmp: act


def _refuse(text: str, code: int = 2) -> Act:
    def act() -> object:
        print(text, file=sys.stderr)
        return code

    return act


def _raise() -> object:
    raise KeyError("a key")


def _abort() -> object:
    os.abort()


def _hold() -> object:
    return len([bytearray(os.urandom(1 << 20) * 64) for _ in range(200)])


def _wait() -> object:
    time.sleep(60)
    return 2


def _execute(tmp: Path) -> Act:
    def act() -> object:
        pickle.loads(canary(tmp))
        print("mim_jax: the file is a pickle: convert it", file=sys.stderr)
        return 2

    return act


def _ill(tmp: Path) -> Act:
    raise AssertionError("the case itself is wrong")


def _started() -> object:
    from mim_jax.tasks import train

    return train.make_train_step(None, None, None, None, None, 1.0)(None, None)  # type: ignore[arg-type]


CASES = [
    Case("sentence", "one", _always(_refuse("mim_jax: the file is damaged: copy it again")), says="copy"),
    Case("accepted", "legitimate", _always(lambda: 0), accepted=True),
    Case("accepted", "training", _always(_started), accepted=True),
    Case("wrongly accepted", "exit 0", _always(lambda: 0)),
    Case("wrongly accepted", "training", _always(_started)),
    Case("wrongly accepted", "an executed pickle", _execute),
    Case("traceback", "raised", _always(_raise)),
    Case("traceback", "killed", _always(_abort)),
    Case("traceback", "two lines", _always(_refuse("mim_jax: one\ntwo"))),
    Case("traceback", "nothing said", _always(_refuse(""))),
    Case("traceback", "exit 1", _always(_refuse("mim_jax: the file is damaged", 1))),
    Case("traceback", "internals", _always(_refuse("mim_jax: 'NoneType' object is not subscriptable"))),
    Case("traceback", "another sentence", _always(_refuse("mim_jax: no")), says="copy"),
    Case("traceback", "refused", _always(_refuse("mim_jax: no")), accepted=True),
    Case("hang", "sleep", _always(_wait), seconds=1.0),
    Case("memory", "grows", _always(_hold), memory=300 << 20),
    Case("broken case", "build", _ill),
]
"""The area is the outcome that each must have."""
