"""Views of an image and its classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mim_jax.data.datasets.base import ArrayDataset, Dataset
from mim_jax.data.errors import DataError
from mim_jax.data.examples import ClassLabels, Example, class_index
from mim_jax.data.views.base import Array, ArraySpec, ExampleKey, Index, View


@dataclass(frozen=True)
class ClassLabelView(View):
    """Adds `label` int32 [B], the index of the class; -1 where an image has none, or several. image: None = the label alone."""

    image: View | None

    @property
    def keys(self) -> dict[str, ArraySpec]:
        return (self.image.keys if self.image else {}) | {"label": ArraySpec((), "int32")}

    @property
    def random(self) -> bool:
        return self.image is not None and self.image.random

    def render(self, example: Example, key: ExampleKey) -> dict[str, Any]:
        rendered = self.image.render(example, key) if self.image else {}
        return rendered | {"label": class_index(example.annotation)}

    def render_batch(
        self, dataset: Dataset, index: Index, epoch: Index, seed: int
    ) -> dict[str, Array] | None:
        rendered = self.image.render_batch(dataset, index, epoch, seed) if self.image else {}
        if rendered is None or not isinstance(dataset, ArrayDataset):
            return None
        return rendered | {"label": dataset.labels[index].astype(np.int32)}


@dataclass(frozen=True)
class ClassLabelsView(View):
    """Adds `labels` int8 [B, classes] (`ClassLabels.shown`). image: None = the labels alone."""

    image: View | None
    num_classes: int

    @property
    def keys(self) -> dict[str, ArraySpec]:
        return (self.image.keys if self.image else {}) | {"labels": ArraySpec((self.num_classes,), "int8")}

    @property
    def random(self) -> bool:
        return self.image is not None and self.image.random

    def render(self, example: Example, key: ExampleKey) -> dict[str, Any]:
        rendered = self.image.render(example, key) if self.image else {}
        return rendered | {"labels": example.annotation.shown}

    def check(self, dataset: Dataset) -> None:
        if dataset.annotation is not ClassLabels:
            raise DataError(
                f"The source {dataset.name} has one label an image, but several were asked for: use label."
            )
