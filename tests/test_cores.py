"""The cores of runs that work side by side."""

import os

import pytest

from mim_jax.compare.cores import divided


@pytest.mark.parametrize(
    ("cores", "slots", "want"),
    [
        (5, 2, [{0, 1}, {2, 3, 4}]),
        (4, 4, [{0}, {1}, {2}, {3}]),
        (8, 1, [None]),
        (2, 3, [None, None, None]),
    ],
)
def test_cores_are_divided(
    cores: int, slots: int, want: list[set[int] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert divided(slots) == want
