"""What MaPeT, PIM and MIM share: token ids as targets, cross-entropy, and the k-means or cache they come from."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path

from mim_jax.config.check import ConfigError
from mim_jax.config.kinds import Count, Text, Vocabulary, words
from mim_jax.data import (
    ClassLabelView,
    ColumnView,
    Dataset,
    SecondSizeView,
    Subset,
    TokenCache,
)
from mim_jax.data import View as DataView
from mim_jax.data.tokens_cache import HEADER
from mim_jax.data.views import Column, SubsetColumn
from mim_jax.methods.method import Artefacts, Batch, Encoder, Outputs, Variables, View, ViTMethod
from mim_jax.methods.preprocessing import DEFAULT, Preprocessing
from mim_jax.methods.rules import Rules, constant, normal, ones, uniform, zeros
from mim_jax.methods.terms import Terms
from mim_jax.models.layers import gather_tokens
from mim_jax.models.masked_predictor import MaskedPredictor
from mim_jax.progress import Progress
from mim_jax.storage import parse_path
from mim_jax.targets.pixels import flip_where, to_unit
from mim_jax.targets.tokens import nearest_centroid
from mim_jax.tokenizers.kmeans import KMeansOptions, check_distinct, fit_kmeans
from mim_jax.tokenizers.tokenizer import (
    NAMES,
    Tokenizer,
    check_tokenizer_fits,
    open_tokenizer_cached,
    tokenizer_flops,
)

TEACHER = "teacher"
"""Batch key of the image at the size of a tokenizer that runs in every step, and artefact key of its weights."""
HELD_OUT = "held_out"
"""Folder of a token cache with the ids of the held-out split: a cache of its own."""
FREQUENCY_PRIOR = 1.0
"""Pseudo-count of every token in the per-position frequencies, so that an unseen token has a finite cross-entropy."""

KMEANS_ITERATIONS, KMEANS_SAMPLE = 30, 16384
"""Of the k-means at the start of a run: iterations at most, and patches that k-means++ draws its centroids from."""


@dataclasses.dataclass(frozen=True)
class TokenOptions:
    """Where token ids come from. Without `tokens` and `weights`, pixels fits a k-means at the start of the run."""

    tokenizer: Annotated[str, words(*NAMES)] = "pixels"  # pixels | kclip | vqkd | dalle
    tokens: Text = ""  # directory of a token cache (python -m mim_jax.tokenize)
    weights: Text = (
        ""  # the tokenizer's file; with `tokens` its fingerprint is checked, without it runs in every step
    )
    vocabulary: Vocabulary = 8192
    kmeans_patches: Count = 200_000  # the k-means at the start sees at most so many patches


class TokenMethod(ViTMethod):
    """Base of the methods that predict token ids.

    Artefacts of the k-means over patch pixels that is fitted at the start: `centroids` float32 [V, p p 3], and `frequency`
    float32 [L, V], log-probability of every token at every position over the training images. Of a tokenizer that runs in
    every step: `teacher`, its weights (not in checkpoints).
    """

    def __init__(self, net: Encoder, options: TokenOptions, preprocessing: Preprocessing = DEFAULT) -> None:
        super().__init__(net, preprocessing)
        if options.tokenizer != "pixels" and not options.tokens and not options.weights:
            raise ConfigError(
                f"config.method.tokenizer={options.tokenizer} needs config.method.tokens=DIRECTORY, a token cache made by"
                " python -m mim_jax.tokenize, or config.method.weights=FILE, the tokenizer itself, which then runs in every step"
            )
        self.token_options = options
        self.vocabulary = options.vocabulary

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that runs in every step, if one does."""
        o = self.token_options
        if o.tokens or not o.weights:
            return None
        tokenizer = open_tokenizer_cached(o.tokenizer, o.weights)
        check_tokenizer_fits(tokenizer, o.weights, self.vocabulary, self.vit.grid)
        return tokenizer

    @property
    def module(self) -> MaskedPredictor:
        return MaskedPredictor(self.vit, self.vocabulary)

    def view(self, train: bool) -> DataView:
        """With the same crop at the size of a tokenizer that runs in every step."""
        image = self.preprocessing.view(self.net.image_size, train)
        if tokenizer := self.tokenizer:
            size = (tokenizer.image_size[0], tokenizer.image_size[1])
            return ClassLabelView(SecondSizeView(image, TEACHER, size, tokenizer.resample))
        return ClassLabelView(image)

    def train_view(self, dataset: Dataset) -> DataView:
        view = self.view(train=True)
        if not self.token_options.tokens:
            return view
        if view.random:
            raise ConfigError(
                "config.method.tokens: cached token ids belong to one fixed, unflipped view, but config.augment has"
                f" crop={self.preprocessing.augment.crop} and flip={self.preprocessing.augment.flip}: use a fixed crop without"
                " flip, or config.method.weights, which computes the tokens during the run"
            )
        return ColumnView(view, {"tokens": self._tokens(located_tokens(self.token_options), dataset)})

    def eval_view(self, dataset: Dataset) -> DataView | None:
        view = self.view(train=False)
        if not self.token_options.tokens:
            return view
        folder = located_tokens(self.token_options) / HELD_OUT
        if not (folder / HEADER).exists():
            return None
        return ColumnView(view, {"tokens": self._tokens(folder, dataset)})

    def _tokens(self, folder: Path, dataset: Dataset) -> Column:
        """The token ids of a cache, which must be of this very tokenizer, view and dataset.

        Raises:
            DataError: it is of something else, naming the field that differs.
        """
        options, augment = self.token_options, self.preprocessing.augment
        parent = dataset.dataset if isinstance(dataset, Subset) else dataset
        expect = dict(
            tokenizer=options.tokenizer,
            vocabulary=options.vocabulary,
            grid=list(self.net.grid),
            view=augment.eval_crop if folder.name == HELD_OUT else augment.crop,
            length=len(parent),
            source_fingerprint=parent.fingerprint,
        )
        if options.weights:
            expect["tokenizer_fingerprint"] = open_tokenizer_cached(
                options.tokenizer, options.weights
            ).fingerprint
        cache = TokenCache.open(folder, expect=expect)
        return SubsetColumn(cache, dataset) if isinstance(dataset, Subset) else cache

    @property
    def constants(self) -> Artefacts:
        return {TEACHER: self.tokenizer.params} if self.tokenizer else {}

    @property
    def notes(self) -> tuple[str, ...]:
        o = self.token_options
        if o.tokens and not (located_tokens(o) / HELD_OUT / HEADER).exists():
            return (
                f"no held-out loss: the token cache {o.tokens} holds the training images only; python -m mim_jax.tokenize now keeps"
                " the ids of held-out images, too: make it again",
            )
        if not self.tokenizer:
            return ()
        return (
            f"the tokenizer {o.tokenizer} runs in every step: {tokenizer_flops(self.tokenizer) / 1e9:.2f} GFLOP per image;"
            " a token cache would save that",
        )

    @property
    def rules(self) -> Rules:
        """docs/papers/mapet.md 5 and 9: normal 0.02, CLS 1e-6, the patch projection torch's default; MASK is decayed."""
        patch_bound = 1.0 / (3 * self.vit.patch**2) ** 0.5
        return Rules(
            init=(
                (r"patch_embed/", uniform(patch_bound)),
                (r"cls_token$", normal(1e-6)),
                (r"gamma$", constant(self.vit.layer_scale or 1.0)),
                (r"(kernel|pos_embed|mask_token)$", normal(0.02)),
                (r"scale$", ones),
                (r"(bias|table)$", zeros),
            )
        )

    def prepare(self, images: Callable[[], Iterable[Any]], seed: int) -> Variables:
        """Fits the tokenizer on the training images, then counts tokens per position."""
        if self.token_options.tokens or self.tokenizer:
            return Variables()
        patches = _sample_patches(self, images(), self.token_options.kmeans_patches, seed)
        try:
            centroids = _fit_centroids(patches, self.vocabulary, seed)
        except ValueError as error:
            raise ConfigError(
                f"config.method.vocabulary={self.vocabulary} is too large for these images: {error}; choose a smaller one"
            ) from error
        counts = np.full((self.vit.num_patches, self.vocabulary), FREQUENCY_PRIOR)
        tokenise = jax.jit(lambda batch: nearest_centroid(self.patches(batch), centroids))
        position = np.arange(self.vit.num_patches)
        for batch in images():
            np.add.at(counts, (position, np.asarray(tokenise(batch))), 1.0)
        frequency = np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
        return Variables(artefacts={"centroids": centroids, "frequency": frequency})

    def labels(self, batch: Batch, images: jax.Array, artefacts: Artefacts) -> jax.Array:
        """Token ids int32 [B, L] in raster order: from the cache, by the tokenizer, or of the clean patches."""
        if self.token_options.tokens:
            return batch["tokens"]
        if tokenizer := self.tokenizer:
            seen = flip_where(to_unit(batch["teacher"]), batch["flip"])
            return tokenizer.ids(artefacts[TEACHER], seen)
        return nearest_centroid(self.patches(images), artefacts["centroids"])

    def loss(self, outputs: Outputs, view: View) -> Terms:
        """Cross-entropy (nats) and accuracy of the targets."""
        logits = outputs["logits"].astype(jnp.promote_types(outputs["logits"].dtype, jnp.float32))
        return _token_terms(jax.nn.log_softmax(logits), view["labels"])

    def baselines(self, view: View, variables: Variables) -> dict[str, Terms]:
        """Guessing all tokens alike, and the best that a per-position token frequency can do without any image."""
        count = jnp.full(view["labels"].shape[:1], view["labels"].shape[1], jnp.float32)
        uniform: dict[str, Terms] = {"uniform": {"loss": (count * jnp.log(float(self.vocabulary)), count)}}
        if "frequency" not in variables.artefacts:
            return uniform
        log_probability = variables.artefacts["frequency"][view["targets"]]
        return uniform | {"position_frequency": _token_terms(log_probability, view["labels"])}


def _token_terms(log_probability: jax.Array, labels: jax.Array) -> Terms:
    chosen = jnp.take_along_axis(log_probability, labels[..., None], axis=-1)[..., 0]
    correct = (jnp.argmax(log_probability, axis=-1) == labels).astype(jnp.float32)
    count = jnp.full(labels.shape[:1], labels.shape[1], jnp.float32)
    return {"loss": (-jnp.sum(chosen, axis=1), count), "token_accuracy": (jnp.sum(correct, axis=1), count)}


def _fit_centroids(patches: np.ndarray, vocabulary: int, seed: int) -> jax.Array:
    """The k-means at the start of a run: float32 [n, d] to [vocabulary, d]; ValueError where too few patches differ."""
    check_distinct(patches, vocabulary)
    options = KMeansOptions(
        vocabulary,
        KMEANS_ITERATIONS,
        restarts=1,
        start="plus_plus",
        max_points_per_centroid=len(patches),
        sample=max(KMEANS_SAMPLE, vocabulary),
        seed=seed,
    )
    with Progress("k-means", KMEANS_ITERATIONS + 1, "passes") as progress:
        return jnp.asarray(fit_kmeans(patches, options, report=lambda _: progress.update()).centroids)


def _sample_patches(method: ViTMethod, images: Iterable[Any], limit: int, seed: int) -> np.ndarray:
    """A uniform sample of at most `limit` patches of all images, never holding more than twice as many; [n, p p 3]."""
    cut = jax.jit(method.patches)
    random = np.random.Generator(np.random.Philox(key=seed))
    patches, priority = np.zeros((0, 3 * method.vit.patch**2), np.float32), np.zeros(0)
    for batch in images:
        new = np.asarray(cut(batch)).reshape(-1, patches.shape[1])
        patches, priority = (
            np.concatenate([patches, new]),
            np.concatenate([priority, random.random(len(new))]),
        )
        if len(patches) > limit:  # the patches of smallest priority are a uniform sample of all seen
            kept = np.sort(np.argpartition(priority, limit)[:limit])
            patches, priority = patches[kept], priority[kept]
    return patches


def located_tokens(options: TokenOptions) -> Path:
    """The directory of the token cache."""
    return parse_path(options.tokens, "config.method.tokens")


def labels_at(labels: jax.Array, targets: jax.Array) -> jax.Array:
    """Labels [B, L] of the target patches [B, P]."""
    return gather_tokens(labels[..., None], targets)[..., 0]
