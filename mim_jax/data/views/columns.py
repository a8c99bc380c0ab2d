"""Views that join what was computed of every example before: token ids, attention maps, features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mim_jax.data.datasets.base import Dataset
from mim_jax.data.datasets.subset import Subset
from mim_jax.data.examples import Example
from mim_jax.data.views.base import Array, ArraySpec, ExampleKey, Index, View


class Column(Protocol):
    """One value per example of a dataset, by its index."""

    @property
    def spec(self) -> ArraySpec:
        """Of one value."""
        ...

    def __getitem__(self, index: Index) -> Array:
        """Values [B, *shape] of the examples int64 [B]."""
        ...


@dataclass(frozen=True)
class SubsetColumn:
    """The values of a dataset's column for the examples of a subset of it."""

    column: Column
    subset: Subset

    @property
    def spec(self) -> ArraySpec:
        return self.column.spec

    def __getitem__(self, index: Index) -> Array:
        return self.column[self.subset.numbers(index)]


class ExampleNumbers(View):
    """Nothing of the example itself: the batch is index, epoch and valid. To be joined with columns."""

    @property
    def keys(self) -> dict[str, ArraySpec]:
        return {}

    def render(self, example: Example, key: ExampleKey) -> dict[str, Any]:
        return {}

    def render_batch(self, dataset: Dataset, index: Index, epoch: Index, seed: int) -> dict[str, Array]:
        return {}


@dataclass(frozen=True)
class ColumnView(View):
    """A view, and columns under their names."""

    view: View
    columns: Mapping[str, Column]

    @property
    def keys(self) -> dict[str, ArraySpec]:
        return self.view.keys | {name: column.spec for name, column in self.columns.items()}

    @property
    def random(self) -> bool:
        return self.view.random

    def render(self, example: Example, key: ExampleKey) -> dict[str, Any]:
        return self.view.render(example, key) | {
            name: column[np.array([key.index])][0] for name, column in self.columns.items()
        }

    def render_batch(
        self, dataset: Dataset, index: Index, epoch: Index, seed: int
    ) -> dict[str, Array] | None:
        rendered = self.view.render_batch(dataset, index, epoch, seed)
        if rendered is None:
            return None
        return rendered | {name: column[index] for name, column in self.columns.items()}

    def check(self, dataset: Dataset) -> None:
        self.view.check(dataset)
