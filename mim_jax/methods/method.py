"""What a method says of itself. The trainer, the checkpoints, the evaluations and the report know nothing else.

    corrupt(keys, batch, variables, train) -> view        pure, static shapes, jittable; one key per example
    forward(variables, view, keys, train) -> outputs      the network
    loss(outputs, view) -> {term: (sum, count)}           per example [B] each; the trainer sums over examples, parts
                                                          and devices and divides once

A simple method writes these three and says which network it trains; everything else has a default. The methods of the
papers make all their random choices in `draws(keys)`, which `corrupt` calls: so a test hands a method the masks, noise or
orders that a paper's own code used, and everything else is what training runs. A view is a dict of arrays with a
leading batch dimension. Its key `patches` [B, L, p p 3] holds the pixels the network may read, if the
method has them as patches: the held-out baseline "another image's patches" exchanges them.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Config
from mim_jax.data import ClassLabelView, Dataset
from mim_jax.data import View as DataView
from mim_jax.methods.held_out import pretraining_evaluators
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.rules import Rules, init_by_rules
from mim_jax.methods.terms import Terms
from mim_jax.models.encoder import FeatureMap
from mim_jax.models.swin import SwinConfig
from mim_jax.models.vit import Params, ViTConfig
from mim_jax.targets.pixels import patchify

Encoder = ViTConfig | SwinConfig
Batch = Mapping[str, jax.Array]
View = dict[str, jax.Array]
Outputs = dict[str, Any]
Artefacts = dict[str, Any]
Draws = dict[str, jax.Array]
"""What `corrupt` chooses at random, each with a leading batch dimension; made from one key per example."""
BATCH_STATS = "batch_stats"
"""Key of the outputs under which `forward` returns new running statistics, if it has any."""


@flax.struct.dataclass
class Variables:
    """What `corrupt` and `forward` may read besides the batch.

    params: the parameters. ema: their moving average, {} where `optim.ema` is 0. batch_stats: running statistics.
    artefacts: what the method prepared or refreshed (centroids, banks). step: int32, updates done.
    """

    params: Params = dataclasses.field(default_factory=dict)
    ema: Params = dataclasses.field(default_factory=dict)
    batch_stats: dict[str, Any] = dataclasses.field(default_factory=dict)
    artefacts: Artefacts = dataclasses.field(default_factory=dict)
    step: jax.Array | int = 0


class Evaluator(Protocol):
    """Something measured of a run now and then: its name, and "eval/..." -> value."""

    @property
    def name(self) -> str: ...

    def __call__(self, variables: Variables, *, baselines: bool) -> dict[str, float]:
        """baselines: also measure what the result is to be compared with."""
        ...


@dataclasses.dataclass(frozen=True)
class EvaluationContext:
    """What evaluators are built from. batches(dataset, view, what): all its examples in order, placed on the devices."""

    config: Config
    train: Dataset
    test: Dataset
    batches: Callable[[Dataset, DataView, str], Iterable[Batch]]
    mesh: jax.sharding.Mesh
    workdir: Any


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the run with its own compiled step; starts with the first step of `first_epoch` (from 0)."""

    name: str
    first_epoch: int
    method: "Method"
    """The method as it is in that phase."""


def same_row(index: npt.NDArray[np.int32], num_examples: int, seed: int) -> npt.NDArray[np.int32]:
    """Every example's row is its own."""
    return index


@dataclasses.dataclass(frozen=True)
class Refresh:
    """Work between two steps: a look at every training image, of which one row per image is kept (AMT's bank).

    The rows of all images are the artefact `name`, whole on every host. `corrupt` finds those of its batch as
    batch[name] [B, *shape], or, if they lie on the device, all of them as artefacts[name] [examples, *shape].
    due: whether it runs after epoch e has ended (from 0; -1 = before the first). saved: False = not in checkpoints, but made
    again where a run resumes: for what does not change. compute: (params, batch) -> rows [B, *shape], jitted by the
    trainer. row_of: (index, number of examples, the run's seed) -> the row that what was computed of that example goes to.
    """

    name: str
    due: Callable[[int], bool]
    view: DataView
    compute: Callable[[Params, Batch], jax.Array]
    shape: tuple[int, ...]
    dtype: str
    initial: float
    on_device: bool = False
    saved: bool = True
    row_of: Callable[[npt.NDArray[np.int32], int, int], npt.NDArray[np.int32]] = same_row


@dataclasses.dataclass(frozen=True)
class Features:
    """What an encoder makes of whole images: every block's tokens [B, N, D], and those after the final norm."""

    layers: list[jax.Array]
    final: jax.Array
    prefix: int  # tokens before the patches (CLS)

    def pooled(self, layer: int = -1, pool: str = "mean") -> jax.Array:
        """[B, D]: mean of the patch tokens, or CLS, of a block's output (-1 = after the final norm)."""
        tokens = self.final if layer == -1 else self.layers[layer]
        return tokens[:, 0] if pool == "cls" else jnp.mean(tokens[:, self.prefix :], axis=1)


@dataclasses.dataclass(frozen=True)
class ImageGrid:
    """Images for the report: name of a column -> uint8 [n, H, W, 3]; and a sentence that says what is drawn."""

    columns: dict[str, Any]
    caption: str


class Method(abc.ABC):
    """An objective on an encoder; a new one is one page that writes the abstract members."""

    name: str
    loss_weights: Mapping[str, float] = {"loss": 1.0}
    """Weight of each term in the objective; terms that are not here are metrics."""

    supervised: bool = False
    """Whether it learns what the annotations say: both splits must then have the same classes."""

    def __init__(self, net: Encoder, preprocessing: Preprocessing = DEFAULT) -> None:
        self.net, self.preprocessing = net, preprocessing

    # The three.

    @abc.abstractmethod
    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> View: ...

    @abc.abstractmethod
    def forward(self, variables: Variables, view: View, keys: jax.Array, train: bool) -> Outputs: ...

    @abc.abstractmethod
    def loss(self, outputs: Outputs, view: View) -> Terms: ...

    # The network.

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
        """Model FLOPs of one example's training step (forward and backward; 2 per multiply-add)."""

    def init_params(self, key: jax.Array) -> Params:
        """Initial parameters, each by its rule and a key of its own name."""
        height, width = self.net.image_size
        patches = patchify(jnp.zeros((1, height, width, 3), jnp.float32), self.net.patch)
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), patches)["params"]
        return init_by_rules(shapes, self.rules.init, key)

    # What it asks of the data.

    def view(self, train: bool) -> DataView:
        """What an example becomes in a batch of training, or of evaluation."""
        return ClassLabelView(self.preprocessing.view(self.net.image_size, train))

    def train_view(self, dataset: Dataset) -> DataView:
        """That of training, with what was computed of this very dataset before (a token cache)."""
        return self.view(train=True)

    def eval_view(self, dataset: Dataset) -> DataView | None:
        """The same for held-out images; None where there can be no held-out loss."""
        return self.view(train=False)

    @property
    def feature_view(self) -> DataView:
        """What `encode` is given: of the encoder's size."""
        return ClassLabelView(self.preprocessing.view(self.net.image_size, train=False))

    # What it asks of the trainer.

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Stretches of the run, in order, each with its own compiled step."""
        return (Phase("train", 0, self),)

    @property
    def refreshes(self) -> tuple[Refresh, ...]:
        """Work between two steps."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before the start, a line each."""
        return ()

    def prepare(self, images: Callable[[], Iterable[Any]], seed: int) -> Variables:
        """Artefacts and batch_stats to start with. images() yields the training images, uint8 [b, H, W, 3], in `feature_view`."""
        return Variables()

    @property
    def constants(self) -> Artefacts:
        """Artefacts that never change and are not in checkpoints: weights from a file, read again where a run resumes."""
        return {}

    # How it is judged and shown.

    def evaluators(self, context: EvaluationContext) -> list[Evaluator]:
        """What is measured of it: of a pre-training objective its held-out loss, and k-NN where the images have classes."""
        return pretraining_evaluators(self, context)

    def baselines(self, view: View, variables: Variables) -> dict[str, Terms]:
        """What can be reached without looking at the image: name -> terms like those of `loss`; held-out only."""
        return {}

    def encode(self, params: Params, images: jax.Array) -> Features:
        """Features of whole images [B, H, W, 3], uint8 or float in [0, 1]: nothing hidden, evaluation mode.

        H and W: any multiples of the patch; positions are resized (`EncoderConfig.resize`).
        """
        layers, final = self.net.layers(params["encoder"], self.preprocessing.normalise(images))
        return Features(layers, final, self.net.prefix)

    def feature_maps(self, params: Params, images: jax.Array, taps: Sequence[int]) -> list[FeatureMap]:
        """Feature maps of images as `encode` takes them; taps as in `EncoderConfig.feature_maps`."""
        return self.net.feature_maps(params["encoder"], self.preprocessing.normalise(images), taps)

    def encode_patches(self, params: Params, patches: jax.Array) -> Features:
        """`encode` of normalised patches [B, L, p p 3]."""
        encoded = self.module.apply({"params": params}, patches, method=_encoder_layers)
        layers, final = cast(tuple[list[jax.Array], jax.Array], encoded)
        return Features(layers, final, self.net.prefix)

    def image_grid(self, view: View, outputs: Outputs, variables: Variables) -> ImageGrid | None:
        """What to show of a batch in the report."""
        return None

    # Shared by the methods.

    def apply(self, params: Params, *args: Any, **kwargs: Any) -> jax.Array:
        """A method of the module, on these parameters."""
        return cast(jax.Array, self.module.apply({"params": params}, *args, **kwargs))

    def patches(self, images: jax.Array) -> jax.Array:
        """Images, uint8 or in [0, 1], normalised and cut into patches."""
        return patchify(self.preprocessing.normalise(images), self.net.patch)


class ViTMethod(Method):
    """A method that needs a ViT."""

    @property
    def vit(self) -> ViTConfig:
        """The encoder. Raises ConfigError where it is none."""
        if not isinstance(self.net, ViTConfig):
            raise ConfigError(
                f"config.method.name={self.name} needs a ViT, but config.model.variant names a Swin: choose a ViT, or the method"
                " simmim or classify"
            )
        return self.net


def fold(keys: jax.Array, purpose: int) -> jax.Array:
    """Keys [B] for one purpose from each example's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys)


def uniform_noise(keys: jax.Array, length: int) -> jax.Array:
    """Uniform in [0, 1), one row per example: [B, length]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)


def _encoder_layers(module: Any, patches: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    return module.encoder.layers(patches)
