"""Host randomness: a pure function of (seed, purpose, numbers), the same on every host and numpy version.

Only Philox's raw words are used. numpy promises that a bit generator's raw stream never changes, and promises
nothing of the kind for what `Generator` makes of it, so the step from words to numbers is ours.
"""

import hashlib
import struct

import numpy as np
import numpy.typing as npt


def philox(seed: int, purpose: str, *numbers: int) -> np.random.Philox:
    """A counter generator whose 128-bit key is a hash of the arguments.

    Args: seed and numbers: integers of at most 64 bits, signed; purpose: what the numbers are for ("crop",
    "order"), so that one purpose can draw more without moving another.
    """
    packed = struct.pack(f"<{len(numbers) + 1}q", seed, *numbers)
    key = hashlib.blake2b(packed + purpose.encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "little"))


def uniforms(count: int, seed: int, purpose: str, *numbers: int) -> list[float]:
    """`count` float64 in [0, 1), multiples of 2**-53."""
    words = philox(seed, purpose, *numbers).random_raw(count)
    unit: list[float] = ((words >> np.uint64(11)) * 2.0**-53).tolist()
    return unit


def permutation(length: int, seed: int, purpose: str, *numbers: int) -> npt.NDArray[np.int64]:
    """A uniform permutation of range(length), int64 [length]: the order in which random words sort."""
    words = philox(seed, purpose, *numbers).random_raw(length)
    return np.argsort(words, kind="stable")
