"""Classification: from scratch, fine-tuning of a pre-trained encoder, and linear probes of a frozen one.

docs/papers/amt.md 1.5 (probe), 1.6 and 2.2, docs/papers/mapet.md 10 (fine-tuning). `config.init` names the run to start from.
"""

import dataclasses
import functools
from typing import Annotated, Self

import jax
import jax.numpy as jnp

from mim_jax.config.check import ConfigError
from mim_jax.config.kinds import Block, CountOrZero, Range, Share, ShareBelowOne, words
from mim_jax.config.schema import Config
from mim_jax.corruptions.mixing import mix, one_hot, random_erasing
from mim_jax.corruptions.randaugment import rand_augment
from mim_jax.data import ClassLabels, ClassLabelsView, ClassLabelView, Dataset
from mim_jax.data import View as DataView
from mim_jax.data.views import ExampleNumbers
from mim_jax.methods.flops import dense_flops, plain_flops, swin_flops
from mim_jax.methods.method import (
    BATCH_STATS,
    Batch,
    Encoder,
    EvaluationContext,
    Evaluator,
    Method,
    Outputs,
    Refresh,
    Variables,
    View,
)
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.rules import (
    Rules,
    constant,
    normal,
    ones,
    truncated_normal,
    vit_layers,
    xavier_uniform,
    zeros,
)
from mim_jax.methods.swin_rules import SWIN_DECAY, swin_init, swin_layers
from mim_jax.methods.terms import Terms
from mim_jax.models.classifier import Classifier, Probe, running
from mim_jax.models.swin import SwinConfig
from mim_jax.models.vit import Params
from mim_jax.targets.pixels import patchify
from mim_jax.transfer.classification import Classification

FEATURES = "features"


@dataclasses.dataclass(frozen=True)
class ClassifyOptions:
    num_classes: CountOrZero | None = None  # None = those of the training split
    multi_label: bool | None = (
        None  # an image may show several classes (VOC2007); None = as the training split has it
    )
    pool: Annotated[str, words("mean", "cls")] = "mean"  # mean (of the patch tokens) | cls
    probe: bool = False  # the encoder is frozen; batch normalisation without affine before the head
    layer: Block = -1  # probe: output of that block; -1 = after the final norm
    cache: bool = True  # probe without random crops or flips: features are computed once
    head_std: Annotated[float, Range(0, 10)] = 2e-5  # of the head's initial weights
    label_smoothing: ShareBelowOne = 0.0
    mixup: Annotated[float, Range(0, 1000)] = 0.0  # alpha; one draw a batch
    cutmix: Annotated[float, Range(0, 1000)] = 0.0
    rand_augment: Annotated[int, Range(0, 100)] = 0  # operations an image; 0 = none
    rand_magnitude: Annotated[float, Range(0, 10)] = 9.0
    erase: Share = 0.0  # probability of random erasing

    def completed(self, config: Config, dataset: Dataset | None) -> Self:
        """With the classes of the training images; ConfigError where another number was set."""
        num_classes = dataset.num_classes if dataset else 0
        if self.num_classes is not None and num_classes and self.num_classes != num_classes:
            raise ConfigError(
                f"config.method.num_classes={self.num_classes}, but {config.data.source} has {num_classes} classes: leave it empty"
            )
        several = dataset is not None and dataset.annotation is ClassLabels
        return dataclasses.replace(
            self,
            num_classes=self.num_classes or num_classes,
            multi_label=several if self.multi_label is None else self.multi_label,
        )


class Classify(Method):
    """Cross-entropy on (possibly mixed and smoothed) labels; with several labels an image, binary for every class."""

    name = "classify"
    supervised = True

    def __init__(
        self, net: Encoder, options: ClassifyOptions, preprocessing: Preprocessing = DEFAULT
    ) -> None:
        super().__init__(net, preprocessing)
        self.options = options
        self.num_classes = options.num_classes or 0
        if self.num_classes < 1:
            raise ConfigError("config.method.num_classes is 0: classification needs images with labels")
        if options.multi_label and (options.mixup or options.cutmix or options.label_smoothing):
            raise ConfigError(
                "config.method.mixup, cutmix and label_smoothing are for one label an image; these images have several:"
                " set all three to 0"
            )
        if options.pool == "cls" and not self.net.prefix:
            raise ConfigError("config.method.pool=cls, but the encoder has no CLS token: use mean")
        if not -1 <= options.layer < self.net.depth:
            raise ConfigError(
                f"config.method.layer={options.layer}: give -1, or a block in 0..{self.net.depth - 1}"
            )
        fixed = not self.preprocessing.view(self.net.image_size, train=True).random
        self.cached = (
            options.probe and options.cache and fixed and not options.rand_augment and not options.erase
        )

    @property
    def module(self) -> Classifier | Probe:
        if self.options.probe:
            return Probe(self.net, self.num_classes, self.width)
        return Classifier(self.net, self.num_classes, self.options.pool)

    @property
    def width(self) -> int:
        """Channels of what a probe reads."""
        if self.options.layer >= 0 and isinstance(self.net, SwinConfig):
            return self.net.widths[self.net.stage_of[self.options.layer]]
        return self.net.features

    @property
    def rules(self) -> Rules:
        """The encoder as in MAE. Kernels and a ViT's relative position tables decay, as in the official lists (two
        dimensions, no entry in the list of exceptions); tokens, positions and one-dimensional parameters do not."""
        head = truncated_normal(self.options.head_std, 2.0)
        frozen = ((r"^encoder/", self.options.probe), (r".", False))
        if isinstance(self.net, SwinConfig):
            return Rules(
                init=((r"^head/kernel$", head), *swin_init(self.net)),
                decay=SWIN_DECAY,
                frozen=frozen,
                layers=swin_layers(self.net),
                last_layer=self.net.depth + 1,
            )
        return Rules(
            init=(
                (r"^head/kernel$", head),
                (r"attn/proj/kernel$", xavier_uniform(input_axes=2)),
                (r"kernel$", xavier_uniform()),
                (r"(cls_token|mask_token|pos_embed)$", normal(0.02)),
                (r"gamma$", constant(self.net.layer_scale or 1.0)),
                (r"scale$", ones),
                (r"(bias|table)$", zeros),
            ),
            decay=((r"(kernel|table)$", True), (r".", False)),
            frozen=frozen,
            layers=vit_layers(self.net.depth),
            last_layer=self.net.depth + 1,
            not_inherited=("encoder/norm/",)
            if not self.options.probe and self.options.pool == "mean"
            else (),
        )

    def _labelled(self, image: DataView | None) -> DataView:
        if self.options.multi_label:
            return ClassLabelsView(image, self.num_classes)
        return ClassLabelView(image)

    def view(self, train: bool) -> DataView:
        if self.cached and train:
            return ExampleNumbers()
        return self._labelled(self.preprocessing.view(self.net.image_size, train))

    @property
    def refreshes(self) -> tuple[Refresh, ...]:
        """Features of a frozen encoder without augmentation, and the labels: once. Then no image is read any more."""
        if not self.cached:
            return ()
        labels = self._labelled(None)
        (name,) = labels.keys
        return (
            Refresh(
                name=FEATURES,
                due=lambda epoch: epoch == -1,
                view=self.preprocessing.view(self.net.image_size, train=True),
                compute=lambda params, batch: self.features(params, self.patches(batch["image"])),
                shape=(self.width,),
                dtype="float32",
                initial=0.0,
                saved=False,
            ),
            Refresh(
                name=name,
                due=lambda epoch: epoch == -1,
                view=labels,
                compute=lambda params, batch: batch[name],
                shape=labels.keys[name].shape,
                dtype=labels.keys[name].dtype,
                initial=-1.0,
                saved=False,
            ),
        )

    def prepare(self, images: object, seed: int) -> Variables:
        """Running statistics of the probe's batch normalisation."""
        width = self.width
        statistics = {"mean": jnp.zeros(width), "variance": jnp.ones(width)}
        return Variables(batch_stats=statistics if self.options.probe else {})

    def evaluators(self, context: EvaluationContext) -> list[Evaluator]:
        view = self.view(train=False)
        batches = functools.partial(context.batches, context.test, view, "classification")
        names = context.train.class_names
        return [
            Classification(
                self.class_scores, batches, class_names=names, workdir=context.workdir, mesh=context.mesh
            )
        ]

    def corrupt(self, keys: jax.Array, batch: Batch, variables: Variables, train: bool = True) -> View:
        o = self.options
        if o.multi_label:
            targets = batch["labels"].astype(jnp.float32)
        else:
            targets = one_hot(batch["label"], self.num_classes, o.label_smoothing)
        if self.cached:
            return {FEATURES: batch[FEATURES], "targets": targets}
        images = self.preprocessing.images(batch)
        if o.rand_augment:
            images = self.augmented(keys, images)
        images = self.preprocessing.network_input(keys, images, train)
        if o.erase:
            images = jax.vmap(
                lambda key, image: random_erasing(jax.random.fold_in(key, 5), image, probability=o.erase)
            )(keys, images)
        if o.mixup or o.cutmix:
            images, targets = mix(
                jax.random.fold_in(keys[0], 6), images, targets, mixup_alpha=o.mixup, cutmix_alpha=o.cutmix
            )
        return {"images": patchify(images, self.net.patch), "targets": targets}

    def augmented(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """RandAugment on images in [0, 1]. One by one on a CPU, where computing every branch costs ten times as much."""
        o, fill = self.options, jnp.asarray(self.preprocessing.mean)

        def one(key: jax.Array, image: jax.Array) -> jax.Array:
            return rand_augment(
                jax.random.fold_in(key, 4),
                image,
                num_ops=o.rand_augment,
                magnitude=o.rand_magnitude,
                fill=fill,
            )

        return jax.lax.platform_dependent(
            keys, images, cpu=lambda k, x: jax.lax.map(lambda pair: one(*pair), (k, x)), default=jax.vmap(one)
        )

    def features(self, params: Params, patches: jax.Array) -> jax.Array:
        """What the probe sees of the frozen encoder, float32 [B, D]; no gradient flows back."""
        pooled = self.encode_patches(params, patches).pooled(self.options.layer, self.options.pool)
        return jax.lax.stop_gradient(pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32)))

    def forward(self, variables: Variables, view: View, keys: jax.Array, train: bool) -> Outputs:
        if not self.options.probe:
            return {"logits": self.apply(variables.params, view["images"], keys if train else None)}
        features = view[FEATURES] if self.cached else self.features(variables.params, view["images"])
        mean, variance = jnp.mean(features, axis=0), jnp.var(features, axis=0)
        logits = self.apply(variables.params, features, mean, variance, method="classify")
        unbiased = variance * len(features) / max(1, len(features) - 1)  # torch's running variance
        old = variables.batch_stats
        statistics = {
            "mean": running(old["mean"], mean),
            "variance": running(old["variance"], unbiased),
        }
        return {"logits": logits, BATCH_STATS: statistics}

    def loss(self, outputs: Outputs, view: View) -> Terms:
        logits = outputs["logits"].astype(jnp.promote_types(outputs["logits"].dtype, jnp.float32))
        targets = view["targets"]
        if self.options.multi_label:
            entropy = -targets * jax.nn.log_sigmoid(logits) - (1.0 - targets) * jax.nn.log_sigmoid(-logits)
            counted = targets >= 0  # -1: neither shown nor absent
            return {
                "loss": (
                    jnp.sum(jnp.where(counted, entropy, 0.0), axis=-1),
                    jnp.sum(counted, axis=-1, dtype=logits.dtype),
                )
            }
        entropy = -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
        return {"loss": (entropy, jnp.ones_like(entropy))}

    def class_scores(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits [B, classes] of whole images [B, H, W, 3] in evaluation mode, float32."""
        params, patches = variables.params, self.patches(images)
        if not self.options.probe:
            return self.apply(params, patches).astype(jnp.float32)
        statistics = (variables.batch_stats["mean"], variables.batch_stats["variance"])
        return self.apply(params, self.features(params, patches), *statistics, method="classify").astype(
            jnp.float32
        )

    def flops(self) -> float:
        """A probe's encoder runs forward only: a third; with cached features not at all."""
        net = self.net
        head = dense_flops(1, self.width, self.num_classes)
        embed = dense_flops(net.num_patches, 3 * net.patch**2, net.width, first=True)
        encoder = embed + (
            swin_flops(net) if isinstance(net, SwinConfig) else plain_flops(net, net.num_tokens)
        )
        if self.options.probe:
            return head + (0.0 if self.cached else encoder / 3)
        return head + encoder
