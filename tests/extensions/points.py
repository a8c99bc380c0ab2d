"""An annotation of another kind, its dataset, its view, and the method that reads it: where in the image a square lies."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.data import View
from mim_jax.data.crop import NoCrop
from mim_jax.data.datasets import OpenArguments, register_dataset
from mim_jax.data.datasets.base import fingerprint
from mim_jax.data.examples import ArrayImage, Example
from mim_jax.data.keys import uniforms
from mim_jax.data.views import ArraySpec, ExampleKey, ImageView
from mim_jax.methods import register_method
from mim_jax.methods.flops import dense_flops, plain_flops
from mim_jax.methods.method import Batch, EvaluationContext, Evaluator, Outputs, Variables, ViTMethod
from mim_jax.methods.method import View as BatchView
from mim_jax.methods.rules import Rules, normal, ones, zeros
from mim_jax.methods.terms import Terms
from mim_jax.models.masked_predictor import MaskedPredictor
from mim_jax.targets.pixels import patchify

NAME, SIDE = "points", 16


@dataclasses.dataclass(frozen=True)
class Point:
    """Row and column, relative to the image."""

    row: float
    column: float


class Squares:
    """Grey images with one bright square of 4 pixels: squares:COUNT."""

    annotation = Point
    class_names: tuple[str, ...] = ()
    num_classes = 0

    def __init__(self, count: int, split: str) -> None:
        self.name, self._count, self._split = f"squares:{count}", count, split
        self.fingerprint = fingerprint([self.name, split])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        row, column = (int(u * (SIDE - 4)) for u in uniforms(2, 0, f"square {self._split}", index))
        pixels = np.full((SIDE, SIDE, 3), 90, np.uint8)
        pixels[row : row + 4, column : column + 4] = 230
        return Example(ArrayImage(pixels), Point((row + 2) / SIDE, (column + 2) / SIDE))

    def describe(self) -> str:
        return f"{self.name}: {len(self)} images with a point"


def open_squares(arguments: OpenArguments) -> Squares:
    return Squares(int(arguments.rest), arguments.split)


@dataclasses.dataclass(frozen=True)
class PointView(View):
    """The image and `point` float32 [B, 2]; a point is mirrored with its image."""

    image: ImageView

    @property
    def keys(self) -> dict[str, ArraySpec]:
        return self.image.keys | {"point": ArraySpec((2,), "float32")}

    @property
    def random(self) -> bool:
        return self.image.random

    def render(self, example: Example, key: ExampleKey) -> dict[str, Any]:
        rendered, point = self.image.render(example, key), example.annotation
        column = 1.0 - point.column if rendered["flip"] else point.column
        return rendered | {"point": (point.row, column)}


@dataclasses.dataclass(frozen=True)
class PointOptions:
    pass


class Points(ViTMethod):
    """The mean of the patches' votes for the point; mean squared error."""

    name = NAME

    @property
    def module(self) -> MaskedPredictor:
        return MaskedPredictor(self.vit, 2)

    @property
    def rules(self) -> Rules:
        return Rules(
            init=(
                (r"(kernel|pos_embed|mask_token|cls_token)$", normal(0.02)),
                (r"(scale|gamma)$", ones),
                (r"(bias|table)$", zeros),
            )
        )

    def view(self, train: bool) -> View:
        return PointView(ImageView(self.net.image_size, NoCrop(), flip=train))

    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> BatchView:
        images = self.preprocessing.normalise(self.preprocessing.images(batch))
        return {"image_patches": patchify(images, self.vit.patch), "point": batch["point"]}

    def forward(self, variables: Variables, view: BatchView, keys: jax.Array, train: bool) -> Outputs:
        return {"point": jnp.mean(self.apply(variables.params, view["image_patches"]), axis=1)}

    def loss(self, outputs: Outputs, view: BatchView) -> Terms:
        error = jnp.sum(jnp.square(outputs["point"] - view["point"]), axis=-1)
        return {"loss": (error, jnp.ones_like(error))}

    def flops(self) -> float:
        embed = dense_flops(self.vit.num_patches, 3 * self.vit.patch**2, self.vit.width, first=True)
        return (
            embed
            + plain_flops(self.vit, self.vit.num_tokens)
            + dense_flops(self.vit.num_patches, self.vit.width, 2)
        )

    def evaluators(self, context: EvaluationContext) -> list[Evaluator]:
        return [PixelError(self, context)]


class PixelError:
    """A new evaluator: `eval/pixel_error`, the mean distance of predicted and true points, in pixels."""

    name = "pixel_error"

    def __init__(self, method: Points, context: EvaluationContext) -> None:
        self._batches = lambda: context.batches(context.test, method.view(train=False), "points")
        self._predict = jax.jit(
            lambda variables, batch: method.forward(
                variables, method.corrupt(None, batch, variables, False), None, False
            )
        )

    def __call__(self, variables: Variables, *, baselines: bool) -> dict[str, float]:
        distances = []
        for batch in self._batches():
            offset = np.asarray(self._predict(variables, batch)["point"] - batch["point"])
            distances.append(SIDE * np.linalg.norm(offset, axis=-1)[np.asarray(batch["valid"])])
        return {"eval/pixel_error": float(np.mean(np.concatenate(distances)))}


register_dataset("squares", "squares:COUNT", open_squares)
register_method(NAME, PointOptions, lambda net, options, preprocessing: Points(net, preprocessing))


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    return choose_preset(preset, {"demo": demo})()


def demo() -> ml_collections.ConfigDict:
    """The configuration: 256 squares, a tiny network."""
    config = default_config()
    with_options(config, NAME, PointOptions)
    config.data.source = "squares:256"
    config.model.variant, config.model.image_size, config.model.patch = "mu", SIDE, 4
    config.eval.baselines = False
    return config
