"""Views: what an example becomes in a batch. One file per kind; the loader knows none of them."""

from mim_jax.data.views.base import ArraySpec, ExampleKey, View
from mim_jax.data.views.columns import Column, ColumnView, ExampleNumbers, SubsetColumn
from mim_jax.data.views.image import ImageView, SecondSizeView
from mim_jax.data.views.labels import ClassLabelsView, ClassLabelView

__all__ = [
    "ArraySpec",
    "ClassLabelView",
    "ClassLabelsView",
    "Column",
    "ColumnView",
    "ExampleKey",
    "ExampleNumbers",
    "ImageView",
    "SecondSizeView",
    "SubsetColumn",
    "View",
]
