"""Whether each test image was classified correctly: per_image.json of a run, for paired statistics between runs.

The file maps a metric to one digit per test image with a label, in the test split's order: 1 = correct.
"""

from collections.abc import Mapping

import jax
import numpy as np
import numpy.typing as npt
from etils.epath import Path

from mim_jax.config.check import ConfigError
from mim_jax.reading import Unreadable, mapping, read_json, text
from mim_jax.storage import write_json

FILE = "per_image.json"
MAX_IMAGES = 1 << 26

Correct = npt.NDArray[np.bool_]


def write_correct(workdir: Path, correct: Mapping[str, Correct]) -> None:
    """Writes the file on the first host. correct: metric -> bool [N]."""
    if jax.process_index() == 0:
        digits = {
            key: (b"01"[0] + values.astype(np.uint8)).tobytes().decode() for key, values in correct.items()
        }
        write_json(workdir / FILE, digits)


def read_correct(workdir: Path) -> dict[str, str]:
    """Metric -> digits; empty where the run has no such file.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        digits: dict[str, str] = read_json(workdir / FILE, mapping(text(MAX_IMAGES)))
        for values in digits.values():
            decode_correct(values)
    except Unreadable as error:
        if error.absent:
            return {}
        raise ConfigError(f"{workdir / FILE} is damaged ({error}): restore it, or move it away") from error
    return digits


def decode_correct(digits: str) -> Correct:
    """One digit per image to bool [N].

    Raises:
        Unreadable: other characters than 0 and 1.
    """
    if digits.strip("01"):
        raise Unreadable("it holds other characters than 0 and 1")
    return np.frombuffer(digits.encode(), np.uint8) == ord("1")
