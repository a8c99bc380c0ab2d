"""Tokenizers from files: images in, token ids out. All are frozen (docs/papers/mapet.md 8)."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open

from mim_jax.config.check import ConfigError, one_of
from mim_jax.interop.check_weights import refuse_untrained_weights
from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import existing, fit, read_weights, write_weights
from mim_jax.interop.teachers import dalle_from, vqkd_from
from mim_jax.interop.vit import HEAD_WIDTH
from mim_jax.models.dalle import DalleConfig, DalleEncoder
from mim_jax.models.dalle import map_pixels as dalle_pixels
from mim_jax.models.vit import Params
from mim_jax.models.vqkd import Vqkd, VqkdConfig
from mim_jax.models.vqkd import map_pixels as vqkd_pixels
from mim_jax.reading import Unreadable, mapping, parse_json
from mim_jax.storage import local_copy
from mim_jax.targets.pixels import patchify
from mim_jax.tokenizers.assignment import nearest_tiled
from mim_jax.tokenizers.teachers import Size, Teacher, make_teacher, parse_tokenizer_metadata

NAMES = ("pixels", "kclip", "vqkd", "dalle")
METADATA_KEY = "mim_jax_tokenizer"
"""Key of a safetensors file's metadata: the tokenizer's name and its teacher's config."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """ids: (params, images [B, H, W, 3] in [0, 1] of `image_size`) -> int32 [B, L], row-major.

    fingerprint: of weights and metadata, 16 hexadecimal digits. resample: filter by which images get their size.
    teacher: of a k-means; None for the others. centroids are params["centroids"] then.
    """

    name: str
    fingerprint: str
    vocabulary: int
    image_size: Size
    grid: Size
    params: Params
    ids: Callable[[Params, jax.Array], jax.Array]
    resample: str = "bicubic"
    teacher: Teacher | None = None


def open_tokenizer(name: str, path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a file.

    Args:
        name: pixels, kclip (both: a file of the task `tokenizer`), vqkd or dalle (converted official weights).
    Raises:
        ConfigError: unknown name, or a file of another tokenizer.
        WeightsError: the file cannot be read, or its weights do not fit.
    """
    one_of("config.method.tokenizer", name, NAMES)
    state = read_weights(path)
    metadata = _read_metadata(path)
    try:
        return {"pixels": _kmeans, "kclip": _kmeans, "vqkd": _vqkd, "dalle": _dalle}[name](
            name, path, state, metadata
        )
    except WeightsError as error:
        raise WeightsError(f"config.method.weights={path}: {error}") from error


@functools.lru_cache(maxsize=2)
def open_tokenizer_cached(name: str, path: str) -> Tokenizer:
    """`open_tokenizer`, which reads the file once: a run builds its method several times."""
    return open_tokenizer(name, path)


def check_tokenizer_fits(tokenizer: Tokenizer, path: str, vocabulary: int, grid: Size) -> None:
    """Raises ConfigError where a tokenizer's ids are not what a run predicts."""
    if tokenizer.vocabulary != vocabulary:
        raise ConfigError(
            f"{path} has {tokenizer.vocabulary} codes, but config.method.vocabulary={vocabulary}: pass"
            f" --config.method.vocabulary={tokenizer.vocabulary}"
        )
    if tokenizer.grid != grid:
        raise ConfigError(
            f"{path} gives {tokenizer.grid[0]} x {tokenizer.grid[1]} ids an image, but the network has {grid[0]} x {grid[1]}"
            " patches: choose model.image_size and model.patch so that they agree"
        )


def tokenizer_flops(tokenizer: Tokenizer) -> float:
    """FLOPs of tokenizing one image, as XLA counts them (2 a multiply-add)."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tokenizer.params)
    image = jax.ShapeDtypeStruct((1, *tokenizer.image_size, 3), np.float32)
    cost: Any = jax.jit(tokenizer.ids).lower(shapes, image).cost_analysis()
    return float(cost["flops"])


def save_kmeans(
    path: str | os.PathLike[str], teacher: Teacher, params: Params, centroids: np.ndarray
) -> None:
    """Writes a k-means tokenizer with its teacher's weights: one file holds all that ids depend on."""
    flat = {f"teacher/{key}": np.asarray(value) for key, value in flatten_dict(params, sep="/").items()}
    name = "pixels" if teacher.config["kind"] == "pixels" else "kclip"
    metadata = json.dumps({"name": name, "teacher": teacher.config}, sort_keys=True)
    write_weights(path, {**flat, "centroids": np.asarray(centroids, np.float32)}, {METADATA_KEY: metadata})


def kmeans_ids(teacher: Teacher) -> Callable[[Params, jax.Array], jax.Array]:
    """Nearest centroid (squared Euclidean) of the teacher's features."""

    def ids(params: Params, images: jax.Array) -> jax.Array:
        features = teacher.features(params["teacher"], images)
        ids = nearest_tiled(features.reshape(-1, teacher.width), params["centroids"])
        return ids.reshape(features.shape[:2])

    return ids


def _kmeans(
    name: str, path: str | os.PathLike[str], state: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> Tokenizer:
    if not metadata or "centroids" not in state:
        raise ConfigError(f"{path} is no tokenizer of ours: make one with --config=configs/tokenizer.py")
    try:
        metadata = parse_tokenizer_metadata(json.dumps(metadata))
    except Unreadable as error:
        raise WeightsError(
            f"what it says of its teacher is damaged ({error}): copy it again, or make it anew"
        ) from error
    if metadata["name"] != name:
        raise ConfigError(
            f"{path} is a {metadata['name']} tokenizer, but config.method.tokenizer is {name}: pass"
            f" --config.method.tokenizer={metadata['name']}"
        )
    teacher = make_teacher(metadata["teacher"])
    tree = unflatten_dict({key: value for key, value in state.items() if key != "centroids"}, sep="/")
    fitted = fit({"teacher": teacher.param_shapes()}, tree, str(path))
    params = {
        "centroids": _centroids(state["centroids"], teacher.width),
        "teacher": fitted.get("teacher", {}),
    }
    return Tokenizer(
        name,
        _fingerprint(state, metadata),
        len(state["centroids"]),
        teacher.image_size,
        teacher.grid,
        params,
        kmeans_ids(teacher),
        teacher=teacher,
    )


def _centroids(centroids: np.ndarray, width: int) -> np.ndarray:
    """The centroids float32 [k, width] of a k-means. Raises WeightsError where they can be none."""
    if centroids.ndim != 2 or centroids.shape[1] != width or not len(centroids):
        raise WeightsError(f"its centroids are {list(centroids.shape)}, but must be [k, {width}]")
    refuse_untrained_weights({"centroids": centroids}, "its k-means")
    if len(centroids) > 1 and (centroids == centroids[0]).all():
        raise WeightsError(
            "its centroids are all the same, so that every patch has one id: make the tokenizer anew"
        )
    return np.asarray(centroids, np.float32)


def _vqkd(
    name: str, path: str | os.PathLike[str], state: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> Tokenizer:
    tree = vqkd_from(state)
    encoder, (codes, code_width) = tree["encoder"], tree["codebook"].shape
    patch = round((encoder["patch_embed"]["kernel"].shape[0] / 3) ** 0.5)
    side = patch * round((encoder["pos_embed"].shape[1] - 1) ** 0.5)
    width = encoder["cls_token"].shape[-1]
    vit = dataclasses.replace(
        VqkdConfig().encoder,
        image_size=(side, side),
        patch=patch,
        width=width,
        depth=sum(key.startswith("block_") for key in encoder),
        heads=width // HEAD_WIDTH,
    )
    config = VqkdConfig(vit, code_width, codes)
    example = jax.ShapeDtypeStruct((1, vit.num_patches, 3 * patch**2), np.float32)
    params = fit(jax.eval_shape(Vqkd(config).init, jax.random.key(0), example)["params"], tree, str(path))

    def ids(params: Params, images: jax.Array) -> jax.Array:
        return Vqkd(config).apply({"params": params}, patchify(vqkd_pixels(images), patch), method="ids")  # type: ignore[return-value]

    return Tokenizer(name, _fingerprint(state, metadata), codes, config.image_size, config.grid, params, ids)


def _dalle(
    name: str, path: str | os.PathLike[str], state: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> Tokenizer:
    tree = dalle_from(state)
    vocabulary, hidden = tree["output"]["kernel"].shape[-1], tree["input"]["kernel"].shape[-1]
    config = DalleConfig(hidden=hidden, vocabulary=vocabulary)
    example = jax.ShapeDtypeStruct((1, *config.image_size, 3), np.float32)
    params = fit(
        jax.eval_shape(DalleEncoder(config).init, jax.random.key(0), example)["params"], tree, str(path)
    )

    def ids(params: Params, images: jax.Array) -> jax.Array:
        return DalleEncoder(config).apply({"params": params}, dalle_pixels(images), method="ids")  # type: ignore[return-value]

    # BEiT shrinks images for DALL-E with Lanczos' filter.
    return Tokenizer(
        name,
        _fingerprint(state, metadata),
        vocabulary,
        config.image_size,
        config.grid,
        params,
        ids,
        "lanczos",
    )


def _read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    with local_copy(existing(path)) as here, safe_open(here, framework="np") as file:
        content = (file.metadata() or {}).get(METADATA_KEY, "{}")
    try:
        metadata: dict[str, Any] = parse_json(content, mapping())
    except Unreadable as error:
        raise WeightsError(
            f"{path} is damaged (its metadata: {error}): copy it again, or make it anew"
        ) from error
    return metadata


def _fingerprint(state: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=8)
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {state[name].shape}".encode())
        digest.update(np.ascontiguousarray(state[name]).data)
    return digest.hexdigest()
