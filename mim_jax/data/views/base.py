"""The view: the one seam between what a dataset holds and what a method reads.

A batch has the keys of its view, each with a leading axis [B], and always

| key   | type      | meaning                                                                            |
|-------|-----------|------------------------------------------------------------------------------------|
| index | int32 [B] | position of the example in the dataset                                             |
| epoch | int32 [B] | how often the example was used before; 0 in evaluation                             |
| valid | bool [B]  | false for the padding at the end of an evaluation                                  |

B is the host's share of the global batch. (index, epoch) names one use of one example: two uses in one batch, where a batch
exceeds the dataset, differ in epoch.
"""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mim_jax.data.crop import ExampleKey
from mim_jax.data.datasets.base import Dataset
from mim_jax.data.examples import Example

__all__ = ["Array", "ArraySpec", "Batch", "ExampleKey", "Index", "View"]

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
Index = npt.NDArray[np.int64]


class ArraySpec(NamedTuple):
    """Shape and dtype of what one example becomes under one key; of ids also how many there are."""

    shape: tuple[int, ...]
    dtype: str
    below: int | None = None

    @property
    def num_bytes(self) -> int:
        """Of one example."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class View(abc.ABC):
    """What one example becomes in a batch: a pure function of the example and its key (seed, epoch, index).

    Image and annotation are rendered together, so that they cannot part.
    """

    @property
    @abc.abstractmethod
    def keys(self) -> dict[str, ArraySpec]:
        """Keys of the batch, per example; the loader allocates from it."""

    @abc.abstractmethod
    def render(self, example: Example, key: ExampleKey) -> dict[str, Any]:
        """The value of every key, on the host; called in decoding threads. Raises DataError."""

    def render_batch(
        self, dataset: Dataset, index: Index, epoch: Index, seed: int
    ) -> dict[str, Array] | None:
        """All examples at once, int64 [B] each, where that is quicker than one by one; None = it is not."""
        return None

    @property
    def random(self) -> bool:
        """Whether two uses of an example may differ."""
        return False

    def check(self, dataset: Dataset) -> None:  # noqa: B027 - most views can show every dataset
        """Raises DataError where the dataset has not what the view shows."""
