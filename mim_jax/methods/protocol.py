"""What a method says of itself. The trainer, the checkpoints, the evaluations and the report know nothing else.

    corrupt(keys, batch, artefacts) -> view        pure, static shapes, jittable; one key per example
    forward(params, view, keys, train) -> outputs  the network
    loss(outputs, view) -> {term: (sum, count)}    per example [B] each; the trainer sums over examples, parts and
                                                   devices and divides once

A simple method writes these three and says which network it trains; everything else has a default. The methods of the
papers make all their random choices in `draws(keys)`, which `corrupt` calls: so a test hands a method the masks, noise or
orders that a paper's own code used, and everything else is what training runs. A view is a dict of arrays with a
leading batch dimension. Its key `patches` [B, L, p p 3] holds the pixels the network may read, if the
method has them as patches: the held-out baseline "another image's patches" exchanges them.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Config
from mim_jax.corruptions.colour import jitter
from mim_jax.data import InputSpec
from mim_jax.methods.networks import encoder_config
from mim_jax.methods.rules import Rules, init_by_rules
from mim_jax.models.encoder import FeatureMap
from mim_jax.models.vit import Params, ViTConfig
from mim_jax.targets.pixels import flip_where, normalise, patchify, to_unit

Batch = Mapping[str, jax.Array]
View = dict[str, jax.Array]
Outputs = dict[str, jax.Array]
Terms = dict[str, tuple[jax.Array, jax.Array]]
Artefacts = dict[str, Any]
Draws = dict[str, jax.Array]
"""What `corrupt` chooses at random, each with a leading batch dimension; made from one key per example."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with its own compiled step; starts with the first step of `first_epoch` (from 0)."""

    name: str = "train"
    first_epoch: int = 0


def same_row(index: npt.NDArray[np.int32], num_examples: int) -> npt.NDArray[np.int32]:
    """Every example's row is its own."""
    return index


@dataclasses.dataclass(frozen=True)
class Pass:
    """Work between two steps: a look at every training image, of which one row an image is kept (AMT's bank).

    The rows of all images are the artefact `name`, whole on every host. `corrupt` finds those of its batch as
    batch[name] [B, *shape], or, if they lie on the device, all of them as artefacts[name] [examples, *shape].
    due: whether it runs after epoch e has ended (from 0; -1 = before the first). saved: False = not in checkpoints, but made
    again where a run goes on: for what does not change. compute: (params, batch) -> rows [B, *shape], jitted by the
    trainer. row_of: (index, number of examples) -> the row that what was computed of that example goes to.
    """

    name: str
    due: Callable[[int], bool]
    input_spec: InputSpec
    compute: Callable[[Params, Batch], jax.Array]
    shape: tuple[int, ...]
    dtype: str
    initial: float
    on_device: bool = False
    saved: bool = True
    row_of: Callable[[npt.NDArray[np.int32], int], npt.NDArray[np.int32]] = same_row


@dataclasses.dataclass(frozen=True)
class Features:
    """What an encoder makes of whole images: every block's slots [B, N, D], and those after the final norm."""

    layers: list[jax.Array]
    final: jax.Array
    prefix: int  # slots before the patches (CLS)

    def pooled(self, layer: int = -1, pool: str = "mean") -> jax.Array:
        """[B, D]: mean of the patch slots, or CLS, of a block's output (-1 = after the final norm)."""
        slots = self.final if layer == -1 else self.layers[layer]
        return slots[:, 0] if pool == "cls" else jnp.mean(slots[:, self.prefix :], axis=1)


@dataclasses.dataclass(frozen=True)
class Picture:
    """Rows for the report: name of a column -> uint8 [n, H, W, 3]; and a sentence that says what is drawn."""

    columns: dict[str, Any]
    caption: str


class Method(abc.ABC):
    """A method built for one resolved configuration."""

    name: str
    loss_weights: Mapping[str, float] = {"loss": 1.0}
    """Weight of each term in the objective; terms that are not here are metrics."""

    num_classes: int = 0
    """Of a classifier, which is judged by its `class_scores` instead of a held-out loss."""

    fresh: tuple[str, ...] = ()
    """Beginnings of the names of encoder parameters that a run which starts from another one does not take over."""

    cached_view: bool = False
    """Whether the targets belong to one fixed view of each image (a token cache): no random crop, no flip."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.net = encoder_config(config)

    @property
    def vit(self) -> ViTConfig:
        """The encoder, for methods that need a ViT. Raises ConfigError where it is none."""
        if not isinstance(self.net, ViTConfig):
            raise ConfigError(
                f"config.method.name={self.name} needs a ViT, but config.model.variant={self.config.model.variant} is a Swin:"
                " choose a ViT, or the method simmim or classify"
            )
        return self.net

    # The three.

    @abc.abstractmethod
    def corrupt(self, keys: jax.Array, batch: Batch, artefacts: Artefacts) -> View: ...

    @abc.abstractmethod
    def forward(self, params: Params, view: View, keys: jax.Array, train: bool) -> Outputs: ...

    @abc.abstractmethod
    def loss(self, outputs: Outputs, view: View) -> Terms: ...

    @property
    @abc.abstractmethod
    def module(self) -> nn.Module:
        """The Flax module whose `__call__(patches)` visits every parameter."""

    @property
    @abc.abstractmethod
    def rules(self) -> Rules:
        """Weight decay, frozen parameters and initialisation, by parameter name."""

    @abc.abstractmethod
    def flops(self) -> float:
        """Model FLOPs of one example's training step (forward and backward; 2 a multiply-add) in this phase."""

    # Defaults.

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Stretches of the run, in order, each with its own compiled step."""
        return (Phase(),)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Work between two steps."""
        return ()

    def in_phase(self, phase: Phase) -> "Method":
        """The method as it corrupts in a phase; itself, for the methods that have one."""
        return self

    @property
    def input_spec(self) -> InputSpec:
        """What it asks of the data: the view of the training images."""
        augment = self.config.augment
        return InputSpec(
            size=self.net.image_size,
            crop=augment.crop,
            scale=augment.scale,
            ratio=augment.ratio,
            flip=augment.flip,
            resample=augment.resample,
        )

    @property
    def eval_spec(self) -> InputSpec:
        """The view of held-out images: of the size that `corrupt` wants, the same at every evaluation."""
        return dataclasses.replace(self.input_spec, crop=self.config.augment.eval_crop, flip=False, extras=())

    @property
    def feature_spec(self) -> InputSpec:
        """The view of images that `encode` is given: of the encoder's size."""
        return dataclasses.replace(self.eval_spec, size=self.net.image_size, teacher=None)

    def example_patches(self) -> jax.Array:
        """Patches of one blank image, to initialise with."""
        height, width = self.net.image_size
        return patchify(jnp.zeros((1, height, width, 3), jnp.float32), self.net.patch)

    def init_params(self, key: jax.Array) -> Params:
        """Fresh parameters, each by its rule and a key of its own name."""
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), self.example_patches())["params"]
        return init_by_rules(shapes, self.rules.init, key)

    def prepare(self, images: Callable[[], Iterable[Any]]) -> Artefacts:
        """Artefacts to start with. `images()` yields the training images once, uint8 [b, H, W, 3], in `feature_spec`."""
        return {}

    @property
    def frozen(self) -> Artefacts:
        """Artefacts that never change and are not in checkpoints: weights from a file, read again where a run goes on."""
        return {}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know before the start, a line each."""
        return ()

    def collect(self, artefacts: Artefacts, outputs: Outputs) -> Artefacts:
        """The artefacts after a training batch (or a part of it): running statistics."""
        return artefacts

    def class_scores(self, params: Params, artefacts: Artefacts, images: jax.Array) -> jax.Array:
        """Logits [B, num_classes] of whole images [B, H, W, 3] in evaluation mode; classifiers only."""
        raise NotImplementedError(f"{self.name} is no classifier")

    def baselines(self, view: View, artefacts: Artefacts) -> dict[str, Terms]:
        """What can be reached without looking at the image: name -> terms like those of `loss`; held-out only."""
        return {}

    def encode(self, params: Params, images: jax.Array) -> Features:
        """Features of whole images [B, H, W, 3], uint8 or float in [0, 1]: nothing hidden, evaluation mode.

        H and W: any multiples of the patch; positions are resized (`EncoderConfig.resize`).
        """
        layers, final = self.net.layers(params["encoder"], self.normalised_images(images))
        return Features(layers, final, self.net.prefix)

    def feature_maps(self, params: Params, images: jax.Array, taps: Sequence[int]) -> list[FeatureMap]:
        """Feature maps of images as `encode` takes them; taps as in `EncoderConfig.feature_maps`."""
        return self.net.feature_maps(params["encoder"], self.normalised_images(images), taps)

    def encode_patches(self, params: Params, patches: jax.Array) -> Features:
        """`encode` of normalised patches [B, L, p p 3]."""
        made = self.module.apply({"params": params}, patches, method=_encoder_layers)
        layers, final = cast(tuple[list[jax.Array], jax.Array], made)
        return Features(layers, final, self.net.prefix)

    def held_out(self, params: Params, batch: Batch) -> Batch:
        """A held-out batch with what only training batches bring along (AMT: rows of its bank)."""
        return batch

    def picture(self, view: View, outputs: Outputs, artefacts: Artefacts) -> Picture | None:
        """What to show of a batch in the report."""
        return None

    # Shared by the methods.

    def apply(self, params: Params, *args: Any, **kwargs: Any) -> jax.Array:
        """A method of the module, on these parameters."""
        return cast(jax.Array, self.module.apply({"params": params}, *args, **kwargs))

    def clean_images(self, batch: Batch) -> jax.Array:
        """The batch's images as float in [0, 1], flipped where the batch says so."""
        images = to_unit(batch["image"])
        return flip_where(images, batch["flip"]) if "flip" in batch else images

    def network_images(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Colour jitter (where asked for) and normalisation of images in [0, 1]."""
        if self.config.augment.jitter:
            images = jax.vmap(lambda key, image: jitter(key, image, self.config.augment.jitter))(keys, images)
        return normalise(images, self.config.data.mean, self.config.data.std)

    def network_patches(self, keys: jax.Array, batch: Batch) -> jax.Array:
        """The batch's images as the network reads them, in patches [B, L, p p 3]."""
        return patchify(self.network_images(keys, self.clean_images(batch)), self.net.patch)

    def clean_patches(self, images: jax.Array) -> jax.Array:
        """Images, uint8 or in [0, 1], normalised and cut into patches."""
        return patchify(self.normalised_images(images), self.net.patch)

    def normalised_images(self, images: jax.Array) -> jax.Array:
        """Images, uint8 or in [0, 1], as the network reads them."""
        return normalise(to_unit(images), self.config.data.mean, self.config.data.std)


def fold(keys: jax.Array, purpose: int) -> jax.Array:
    """Keys [B] for one purpose from each example's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys)


def uniform_noise(keys: jax.Array, length: int) -> jax.Array:
    """Uniform in [0, 1), one row an example: [B, length]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)


def _encoder_layers(module: Any, patches: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    return module.encoder.layers(patches)
