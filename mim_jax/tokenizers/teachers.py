"""Frozen networks whose features k-means turns into ids. A teacher is described by plain facts, which a tokenizer's file holds."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax.config.check import ConfigError, one_of
from mim_jax.interop.files import fit, read_weights
from mim_jax.interop.teachers import clip_resnet_from
from mim_jax.interop.vit import encoder_from
from mim_jax.models.clip_resnet import CLIP_RESNETS, ClipResNet, ClipResNetConfig
from mim_jax.models.vit import Params, ViT, ViTConfig
from mim_jax.reading import Unreadable
from mim_jax.targets.pixels import normalise, patchify
from mim_jax.tokenizers.facts import Facts, check_teacher

Size = tuple[int, int]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """image_size: (height, width) in pixels. features: (params, images [B, H, W, 3] in [0, 1]) -> float32 [B, L, width].

    facts: what `make_teacher` makes it of again; JSON. shapes: of its parameters.
    """

    image_size: Size
    grid: Size
    width: int
    features: Callable[[Params, jax.Array], jax.Array]
    facts: Facts
    shapes: Callable[[], Params]


def make_teacher(facts: Mapping[str, Any]) -> Teacher:
    """The teacher of `facts`: kind, image_size, mean, std and what its kind needs.

    Raises:
        ConfigError: an unknown kind, or a fact that is missing or impossible.
    """
    try:
        facts = check_teacher(json.loads(json.dumps(facts)), "the teacher")
    except Unreadable as error:
        raise ConfigError(str(error)) from error
    size = (facts["image_size"][0], facts["image_size"][1])
    grid, width, network, shapes = TEACHERS[facts["kind"]](facts, size)
    mean, std = tuple(facts["mean"]), tuple(facts["std"])

    def features(params: Params, images: jax.Array) -> jax.Array:
        made = network(params, normalise(images, mean, std))
        return made.reshape(len(images), -1, width).astype(jnp.float32)

    return Teacher(size, grid, width, features, dict(facts), shapes)


Network = Callable[[Params, jax.Array], jax.Array]
Made = tuple[Size, int, Network, Callable[[], Params]]
"""Grid, width of a feature, network on normalised images, shapes of its parameters."""


def _pixels(facts: Mapping[str, Any], size: Size) -> Made:
    """The patches themselves: no network."""
    patch = int(facts["patch"])
    grid = size[0] // patch, size[1] // patch
    return grid, 3 * patch**2, lambda params, images: patchify(images, patch), dict


def _clip_resnet(facts: Mapping[str, Any], size: Size) -> Made:
    """The last residual stage before the attention pool (docs/papers/mapet.md 8.1)."""
    blocks = facts["layers"]
    config = ClipResNetConfig((blocks[0], blocks[1], blocks[2], blocks[3]), facts["width"], size)

    def network(params: Params, images: jax.Array) -> jax.Array:
        made: Any = ClipResNet(config).apply({"params": params}, images)
        return made

    def shapes() -> Params:
        example = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
        found: Params = jax.eval_shape(ClipResNet(config).init, jax.random.key(0), example)["params"]
        return found

    return config.grid, config.features, network, shapes


def _vit(facts: Mapping[str, Any], size: Size) -> Made:
    """Patch tokens of a ViT (CLIP, DINO, plain) after its last block, before the final norm."""
    config = ViTConfig(**{**facts["vit"], "image_size": size})

    def network(params: Params, images: jax.Array) -> jax.Array:
        made: Any = ViT(config).apply({"params": params}, patchify(images, config.patch), method="layers")
        layers: list[jax.Array] = made[0]
        return layers[-1][:, config.prefix :]

    def shapes() -> Params:
        example = jax.ShapeDtypeStruct((1, config.num_patches, 3 * config.patch**2), jnp.float32)
        found: Params = jax.eval_shape(ViT(config).init, jax.random.key(0), example)["params"]
        return found

    return config.grid, config.width, network, shapes


TEACHERS: dict[str, Callable[[Mapping[str, Any], Size], Made]] = {
    "pixels": _pixels,
    "clip_resnet": _clip_resnet,
    "vit": _vit,
}
"""Kind -> what makes its network of its facts."""


def load_teacher(
    kind: str,
    weights: str,
    *,
    image_size: Size | None,
    patch: int,
    heads: int | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[Teacher, Params]:
    """A teacher and its parameters.

    Args:
        kind: pixels | clip_resnet | vit.
        weights: safetensors file, in anybody's naming; empty for pixels.
        image_size: None = the one the weights were made for.
        patch: pixels only. heads: of a vit, None = width / 64.
        mean, std: of the images, except where the weights are CLIP's, which come with their own.
    Raises:
        ConfigError: weights missing or too much. WeightsError: they do not fit.
    """
    one_of("config.job.teacher", kind, TEACHERS)
    if (kind == "pixels") == bool(weights):
        raise ConfigError(
            f"config.job.teacher={kind} "
            + (
                "has no weights: leave config.job.weights empty"
                if weights
                else "needs config.job.weights=FILE.safetensors"
            )
        )
    if kind == "pixels":
        if image_size is None:
            raise ConfigError("config.job.image_size is empty, but pixels have no size of their own: give it")
        facts = _facts(kind, image_size, mean, std, patch=patch)
        return make_teacher(facts), {}
    if kind == "clip_resnet":
        tree = clip_resnet_from(read_weights(weights))
        config = _resnet_of(tree, image_size)
        facts = _facts(
            kind, config.image_size, CLIP_MEAN, CLIP_STD, layers=list(config.layers), width=config.width
        )
        teacher = make_teacher(facts)
        return teacher, fit(teacher.shapes(), tree, weights)
    tree, seen = encoder_from(read_weights(weights))
    vit = seen.config(heads, image_size)
    if seen.pre_norm:  # CLIP
        mean, std = CLIP_MEAN, CLIP_STD
    options = {
        key: value for key, value in dataclasses.asdict(vit).items() if key not in ("image_size", "dtype")
    }
    facts = _facts(kind, vit.image_size, mean, std, vit=options)
    teacher = make_teacher(facts)
    return teacher, fit(teacher.shapes(), tree, weights)


def _resnet_of(tree: Params, image_size: Size | None) -> ClipResNetConfig:
    """The ResNet whose parameters these are; image_size: None = the one OpenAI trained it at."""
    blocks = [sum(name.startswith(f"layer{stage}_") for name in tree) for stage in (1, 2, 3, 4)]
    config = ClipResNetConfig(
        (blocks[0], blocks[1], blocks[2], blocks[3]),
        tree["conv3"]["kernel"].shape[-1],
        image_size or (224, 224),
    )
    for known in CLIP_RESNETS.values():
        if image_size is None and (known.layers, known.width) == (config.layers, config.width):
            return known
    return config


def _facts(kind: str, size: Size, mean: tuple[float, ...], std: tuple[float, ...], **more: Any) -> Facts:
    return {"kind": kind, "image_size": list(size), "mean": list(mean), "std": list(std), **more}
