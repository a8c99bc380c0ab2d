"""Starting from somebody else's ViT: a file of weights in place of a run of ours."""

import dataclasses
import functools

import jax
from etils.epath import Path

from mim_jax.config.check import ConfigError
from mim_jax.config.resolve import resolve
from mim_jax.config.schema import Config, Model
from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import read_weights, split_heads
from mim_jax.interop.vit import EncoderFacts, encoder_from
from mim_jax.methods import Method, build_method, complete_options
from mim_jax.models.vit import Params, ViTConfig
from mim_jax.storage import parse_path
from mim_jax.tokenizers.teachers import CLIP_MEAN, CLIP_STD


def is_weights(init: str) -> bool:
    """Whether `init` names a file of weights, not the directory of a run."""
    place = parse_path(init, "config.init")
    return bool(place.suffix) and not place.is_dir()


def with_network_of(config: Config, init: str) -> Config:
    """The configuration with the network that the weights `init` describe, and CLIP's normalisation if they are CLIP's.

    Heads cannot be seen in most weights: config.model.heads, else width / 64. Own are drop path, dtype, attention, remat and,
    where one is set, the image size.

    Raises:
        WeightsError: the file cannot be read, or is no ViT that we have.
    """
    _, seen = _read(init)
    vit = seen.config(config.model.heads)
    same = {
        name: getattr(vit, name)
        for name in (field.name for field in dataclasses.fields(Model))
        if hasattr(vit, name) and name not in ("drop_path", "dtype", "attention", "remat", "image_size")
    }
    size: int | tuple[int, int] = (
        vit.image_size[0] if vit.image_size[0] == vit.image_size[1] else vit.image_size
    )
    if config.model.image_size is not None:
        size = config.model.image_size  # positions are resized
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image_size=size, **same))
    if seen.pre_norm:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, mean=CLIP_MEAN, std=CLIP_STD)
        )
    return config


def network_of(init: str, heads: int | None = None) -> ViTConfig:
    """The network that a file of weights describes."""
    return _read(init)[1].config(heads)


def read_encoder(init: str) -> Params:
    """The encoder's parameters of a file, as our `ViT` names them; `split_heads` cuts its attention into heads."""
    return dict(_read(init)[0])


def read_imported(path: Path) -> tuple[Config, Method, Params]:
    """Configuration, method and parameters for encoding with the weights of a file; as `inherit.read_run`.

    The method is a classifier whose head is not trained.

    Raises:
        ConfigError, WeightsError: the weights cannot be used.
    """
    config = with_network_of(Config(method={"name": "classify", "num_classes": 1}), str(path))
    config = resolve(config, num_examples=1, num_devices=1, platform=jax.default_backend())
    method = build_method(complete_options(config))
    params = method.init_params(jax.random.key(0))
    encoder = read_encoder(str(path))
    if unknown := sorted(set(params["encoder"]) ^ set(encoder)):
        raise ConfigError(f"{path} does not give a whole encoder: {', '.join(unknown)}")
    return config, method, {**params, "encoder": split_heads(params["encoder"], encoder)}


@functools.lru_cache(maxsize=2)
def _read(init: str) -> tuple[Params, EncoderFacts]:
    state = read_weights(init)
    try:
        return encoder_from(state)
    except WeightsError as error:
        raise WeightsError(f"config.init={init}: {error}") from error
