"""Where the tokens of an attention block lie: what an analysis of its weights must know of the network."""

import dataclasses

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class AttentionGeometry:
    """Of one block. Its attention's weights are [B, windows, heads, prefix + T, prefix + T].

    coordinates: [T, 2], (row, column) of a window's tokens, in tokens. pixels: side of a token in pixels of the network's
    input. prefix: tokens before them (CLS). regions: int [windows, T]: tokens of different labels must not attend to each
    other (a shifted window's parts, or padding); None = no such labels.
    """

    coordinates: npt.NDArray[np.int64]
    pixels: float
    prefix: int = 0
    windows: int = 1
    regions: npt.NDArray[np.int64] | None = None
