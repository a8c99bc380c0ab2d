"""Frozen networks whose features k-means turns into ids. A teacher is described by a config of plain JSON, which a tokenizer's
file holds, and which is checked before a network is made of it."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.config.check import ConfigError, one_of
from mim_jax.interop.files import fit, read_weights
from mim_jax.interop.teachers import clip_resnet_from
from mim_jax.interop.vit import encoder_from
from mim_jax.models.clip_resnet import CLIP_RESNETS, ClipResNet, ClipResNetConfig
from mim_jax.models.vit import Params, ViT, ViTConfig
from mim_jax.reading import Shape, Unreadable, listed, number, parse_json, record, text, whole
from mim_jax.targets.pixels import normalise, patchify

Size = tuple[int, int]
TeacherConfig = dict[str, Any]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """image_size: (height, width) in pixels. features: (params, images [B, H, W, 3] in [0, 1]) -> float32 [B, L, width].

    config: what `make_teacher` rebuilds it from; JSON. param_shapes: of its parameters.
    """

    image_size: Size
    grid: Size
    width: int
    features: Callable[[Params, jax.Array], jax.Array]
    config: TeacherConfig
    param_shapes: Callable[[], Params]


def make_teacher(config: Mapping[str, Any]) -> Teacher:
    """The teacher of a config: kind, image_size, mean, std and what its kind needs.

    Raises:
        ConfigError: an unknown kind, or a value that is missing or impossible.
    """
    try:
        config = check_teacher(json.loads(json.dumps(config)), "the teacher")
    except Unreadable as error:
        raise ConfigError(str(error)) from error
    size = (config["image_size"][0], config["image_size"][1])
    network = TEACHERS[config["kind"]](config, size)
    mean, std = tuple(config["mean"]), tuple(config["std"])

    def features(params: Params, images: jax.Array) -> jax.Array:
        values = network.apply(params, normalise(images, mean, std))
        return values.reshape(len(images), -1, network.width).astype(jnp.float32)

    return Teacher(size, network.grid, network.width, features, dict(config), network.param_shapes)


class _Network(NamedTuple):
    """Without the normalisation of its images; width: of a feature."""

    grid: Size
    width: int
    apply: Callable[[Params, jax.Array], jax.Array]
    param_shapes: Callable[[], Params]


def _param_shapes(module: nn.Module, *example_shape: int) -> Callable[[], Params]:
    def shapes() -> Params:
        example = jax.ShapeDtypeStruct(example_shape, jnp.float32)
        params: Params = jax.eval_shape(module.init, jax.random.key(0), example)["params"]
        return params

    return shapes


def _pixels(config: Mapping[str, Any], size: Size) -> _Network:
    """The patches themselves: no network."""
    patch = int(config["patch"])
    grid = size[0] // patch, size[1] // patch
    return _Network(grid, 3 * patch**2, lambda params, images: patchify(images, patch), dict)


def _clip_resnet(config: Mapping[str, Any], size: Size) -> _Network:
    """The last residual stage before the attention pool (docs/papers/mapet.md 8.1)."""
    blocks = config["layers"]
    resnet = ClipResNetConfig((blocks[0], blocks[1], blocks[2], blocks[3]), config["width"], size)

    def apply(params: Params, images: jax.Array) -> jax.Array:
        features: Any = ClipResNet(resnet).apply({"params": params}, images)
        return features

    return _Network(resnet.grid, resnet.features, apply, _param_shapes(ClipResNet(resnet), 1, *size, 3))


def _vit(config: Mapping[str, Any], size: Size) -> _Network:
    """Patch tokens of a ViT (CLIP, DINO, plain) after its last block, before the final norm."""
    vit = ViTConfig(**{**config["vit"], "image_size": size})

    def apply(params: Params, images: jax.Array) -> jax.Array:
        outputs: Any = ViT(vit).apply({"params": params}, patchify(images, vit.patch), method="layers")
        layers: list[jax.Array] = outputs[0]
        return layers[-1][:, vit.prefix :]

    shapes = _param_shapes(ViT(vit), 1, vit.num_patches, 3 * vit.patch**2)
    return _Network(vit.grid, vit.width, apply, shapes)


TEACHERS: dict[str, Callable[[Mapping[str, Any], Size], _Network]] = {
    "pixels": _pixels,
    "clip_resnet": _clip_resnet,
    "vit": _vit,
}
"""Kind -> the function that builds its network from its config."""


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
        config = _config(kind, image_size, mean, std, patch=patch)
        return make_teacher(config), {}
    if kind == "clip_resnet":
        tree = clip_resnet_from(read_weights(weights))
        resnet = _resnet_of(tree, image_size)
        config = _config(
            kind, resnet.image_size, CLIP_MEAN, CLIP_STD, layers=list(resnet.layers), width=resnet.width
        )
        teacher = make_teacher(config)
        return teacher, fit(teacher.param_shapes(), tree, weights)
    tree, description = encoder_from(read_weights(weights))
    vit = description.config(heads, image_size)
    if description.pre_norm:  # CLIP
        mean, std = CLIP_MEAN, CLIP_STD
    options = {
        key: value for key, value in dataclasses.asdict(vit).items() if key not in ("image_size", "dtype")
    }
    config = _config(kind, vit.image_size, mean, std, vit=options)
    teacher = make_teacher(config)
    return teacher, fit(teacher.param_shapes(), tree, weights)


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


def _config(
    kind: str, size: Size, mean: tuple[float, ...], std: tuple[float, ...], **more: Any
) -> TeacherConfig:
    return {"kind": kind, "image_size": list(size), "mean": list(mean), "std": list(std), **more}


_MAX_SIDE = 2**13
"""Pixels."""


def parse_tokenizer_metadata(content: str) -> dict[str, Any]:
    """The metadata of a k-means tokenizer: its name, and its teacher's config as `make_teacher` takes it.

    Raises:
        Unreadable: it is no JSON, lacks something, or describes what no teacher can be.
    """
    metadata: dict[str, Any] = parse_json(content, record({"name": text(64), "teacher": check_teacher}))
    return metadata


def check_teacher(value: Any, name: str) -> TeacherConfig:
    """A teacher's config, checked by its kind. Raises Unreadable."""
    kind = record({"kind": text(64)})(value, name)["kind"]
    if kind not in _KINDS:
        raise Unreadable(f"{name}.kind is {kind!r}, not one of {', '.join(_KINDS)}")
    config: TeacherConfig = record({**_COMMON, **_KINDS[kind]}, others=_unknown)(value, name)
    patch = config["vit"]["patch"] if kind == "vit" else config.get("patch", 32)
    if any(side < patch or (kind != "clip_resnet" and side % patch) for side in config["image_size"]):
        raise Unreadable(f"{name}.image_size is {config['image_size']}, which {patch} pixels do not divide")
    return config


def _unknown(_value: Any, name: str) -> NoReturn:
    raise Unreadable(f"{name} is not known")


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise Unreadable(f"{name} is not true or false")
    return value


def _optional(shape: Shape) -> Shape:
    return lambda value, name: None if value is None else shape(value, name)


def _one_of_words(*words: str) -> Shape:
    def check(value: Any, name: str) -> str:
        if value not in words:
            raise Unreadable(f"{name} is not one of {', '.join(words)}")
        return str(value)

    return check


_COMMON: dict[str, Shape] = {
    "kind": text(64),
    "image_size": listed(whole(1, _MAX_SIDE), shortest=2, longest=2),
    "mean": listed(number(-1e3, 1e3), shortest=3, longest=3),
    "std": listed(number(1e-6, 1e3), shortest=3, longest=3),
}
_VIT = record(
    {"patch": whole(1, _MAX_SIDE), "width": whole(1, 2**15), "depth": whole(1, 500), "heads": whole(1, 1024)},
    {
        "mlp_ratio": number(0.01, 100.0),
        "positions": _one_of_words("learned", "sincos_2d", "sincos_1d", "none"),
        "relative_bias": _one_of_words("none", "shared", "per_block"),
        "cls": _boolean,
        "layer_scale": _optional(number(-1e3, 1e3)),
        "qkv_bias": _one_of_words("qkv", "qv", "none"),
        "drop_path": number(0.0, 1.0),
        "norm_eps": number(0.0, 1.0),
        "pre_norm": _boolean,
        "activation": _one_of_words("gelu", "quick_gelu"),
        "patch_bias": _boolean,
        "remat": _one_of_words("none", "block", "dots"),
        "attention": _one_of_words("auto", "xla", "cudnn"),
    },
    others=_unknown,
)
_KINDS: dict[str, dict[str, Shape]] = {
    "pixels": {"patch": whole(1, _MAX_SIDE)},
    "clip_resnet": {
        "layers": listed(whole(1, 200), shortest=4, longest=4),
        "width": whole(1, 2**13),
    },
    "vit": {"vit": _VIT},
}
"""Kind -> what its config holds besides _COMMON."""
