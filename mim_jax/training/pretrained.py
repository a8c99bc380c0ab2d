"""Starting from something pre-trained, `config.init`: the directory of a run, or a file of somebody else's weights.

The configuration takes over the network's shape (and, from a run, its normalisation and data), the state its encoder's
parameters, for another image size if one is set.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from etils.epath import Path

from mim_jax.config.check import ConfigError, one_of
from mim_jax.config.resolve import resolve
from mim_jax.config.schema import Config, Model, resolved
from mim_jax.config.variants import SWINS
from mim_jax.interop.errors import WeightsError
from mim_jax.interop.files import read_weights, split_heads
from mim_jax.interop.vit import EncoderSpec, encoder_from
from mim_jax.methods import Method, build_method, complete_options
from mim_jax.methods.networks import encoder_config
from mim_jax.methods.rules import name_of
from mim_jax.models.surgery import MODES, surgery
from mim_jax.models.swin import SwinConfig
from mim_jax.models.vit import Params, TransformerEncoder, ViTConfig
from mim_jax.storage import parse_path
from mim_jax.tokenizers.teachers import CLIP_MEAN, CLIP_STD
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.run_directory import read_config, refuse_changed_config
from mim_jax.training.sharding import abstract

OWN_KEYS = ("drop_path", "dtype", "attention", "remat")
"""Keys of config.model that a run sets for itself, whatever it starts from; so it does image_size, where one is set."""
MAX_LISTED = 5
"""Parameters named in an error."""


def with_network_of_init(config: Config) -> Config:
    """The configuration with the network, normalisation and (source=init) data of the run, or weights, `config.init`.

    Fixed sin-cos positions become learned ones that start from the same table, as in MAE's fine-tuning.
    Own are: drop path, dtype, attention, remat, and the image size where one is set.

    Raises:
        ConfigError: there is no such run, or source=init without one.
    """
    return _truncated(_with_network(config))


def _with_network(config: Config) -> Config:
    if config.init is None or is_weights_file(config.init):
        if config.data.source == "init":
            raise ConfigError(
                "config.data.source=init takes the data of a run: name it, --config.init=DIRECTORY, or set config.data.source"
            )
        return config if config.init is None else with_network_of_weights(config, config.init)
    pretrained = read_config(parse_path(config.init, "config.init"))
    model = model_at_size(pretrained, config.model.image_size)
    if model.positions.startswith("sincos"):
        model = dataclasses.replace(model, positions="learned")
    model = dataclasses.replace(model, **{key: getattr(config.model, key) for key in OWN_KEYS})
    data = dataclasses.replace(config.data, mean=pretrained.data.mean, std=pretrained.data.std)
    if data.source == "init":
        keys = ("source", "split", "test_split", "data_dir", "on_bad_image", "crops_per_picture")
        data = dataclasses.replace(data, **{key: getattr(pretrained.data, key) for key in keys})
    return dataclasses.replace(config, model=model, data=data)


def model_at_size(pretrained: Config, image_size: int | tuple[int, int] | None) -> Model:
    """The model of a run for another image size (None = its own); a Swin's position biases keep the windows they know.

    Raises:
        ConfigError: they were trained in windows that are no squares, which a configuration cannot say.
    """
    net = encoder_config(pretrained)
    if image_size is None:
        return pretrained.model
    model = dataclasses.replace(pretrained.model, image_size=image_size)
    if not isinstance(net, SwinConfig) or model.pretrained_windows is not None:
        return model
    if any(rows != columns for rows, columns in net.reference_windows):
        raise ConfigError(
            f"config.model.image_size={image_size}: the encoder of config.init was trained in windows of"
            f" {net.reference_windows}, and only squares can be taken to another size: leave config.model.image_size empty"
        )
    return dataclasses.replace(model, pretrained_windows=tuple(rows for rows, _ in net.reference_windows))


def ignored_keys(requested: Config, resolved: Config) -> list[str]:
    """Lines for keys of the network that were set, and are not what the network of `config.init` has."""
    lines = []
    for field in dataclasses.fields(Model):
        wanted, actual = getattr(requested.model, field.name), getattr(resolved.model, field.name)
        free = field.name in (*OWN_KEYS, "image_size")
        if requested.init and not free and wanted not in (field.default, actual):
            lines.append(f"model.{field.name}={actual}, that of config.init; {wanted} has no effect")
    return lines


def _truncated(config: Config) -> Config:
    """The depth of a network that surgery takes blocks from.

    Raises:
        ConfigError: surgery on nothing, or on more blocks than there are.
    """
    s = config.surgery
    one_of("config.surgery.mode", s.mode, ("none", *MODES))
    if s.mode == "none":
        return config
    if config.init is None:
        raise ConfigError(
            f"config.surgery.mode={s.mode} changes an encoder that config.init names: pass --config.init=RUN"
        )
    if s.mode != "truncate":
        return config
    if config.model.variant in SWINS:
        raise ConfigError("config.surgery.mode=truncate is for a ViT; of a Swin use reinit or shuffle")
    left = resolved(config.model.depth) - s.blocks
    if not 0 <= s.blocks < resolved(config.model.depth):
        raise ConfigError(
            f"config.surgery.blocks={s.blocks} must lie in 0..{resolved(config.model.depth) - 1}"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, depth=left))


def _after_surgery(encoder: Params, config: Config, method: Method, initial: Params) -> Params:
    """The encoder after the surgery that the configuration asks for."""
    s, net = config.surgery, method.net
    if s.mode == "none":
        return encoder
    depths = net.depths if isinstance(net, SwinConfig) else None
    try:
        done = surgery(
            {"encoder": encoder}, initial, mode=s.mode, n_last=s.blocks, depths=depths, seed=s.seed
        )
    except ValueError as error:
        raise ConfigError(f"config.surgery: {error}") from error
    return done["encoder"]


def read_run(
    directory: Path,
    step: int | None = None,
    *,
    ema: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[Config, Method, Params, int]:
    """Configuration, method, parameters (or their moving average) and step of a run's checkpoint.

    Raises:
        ConfigError: there is no run, or its configuration cannot be used here.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    config = _usable_here(read_config(directory))
    method = build_method(config)
    where = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    part = "ema" if ema else "params"
    wanted = {part: abstract(shapes, jax.tree.map(lambda _: where, shapes))}
    with Checkpoints(directory / "checkpoints") as checkpoints:
        found, restored = checkpoints.restore_partial(wanted, step)
        trained_with = checkpoints.metadata(found)["custom_metadata"].get("config")
    if isinstance(trained_with, dict):
        refuse_changed_config(directory, trained_with)
    return config, method, restored[part], found


def load_encoder(config: Config, method: Method, params: Params) -> Params:
    """The parameters with the encoder of `config.init`, a run or a file, laid out as they are; `rules.not_inherited` stays.

    Raises:
        ConfigError: naming the parameters that do not fit.
    """
    init = str(config.init)
    if is_weights_file(init):
        encoder = split_heads(params["encoder"], read_encoder(init))
        net: ViTConfig | SwinConfig = network_of(init, config.model.heads)
    else:
        _, pretrained, pretrained_params, _ = read_run(parse_path(init, "config.init"))
        encoder, net = dict(pretrained_params["encoder"]), pretrained.net
    if "pos_embed" in params["encoder"] and "pos_embed" not in encoder:
        encoder["pos_embed"] = TransformerEncoder(cast(ViTConfig, net)).apply({}, method="positions")
    encoder = net.resize(encoder, method.net)  # type: ignore[arg-type]
    encoder = _after_surgery(encoder, config, method, params)
    loaded = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path({"encoder": encoder})}
    misfits: list[str] = []

    def choose(path: Any, initial: jax.Array) -> jax.Array:
        name = name_of(path)
        if not name.startswith("encoder/") or name.startswith(method.rules.not_inherited):
            return initial
        value = loaded.get(name)
        if value is None or value.shape != initial.shape:
            shape = "absent" if value is None else list(value.shape)
            misfits.append(f"{name} is {shape} there and {list(initial.shape)} here")
            return initial
        return jax.device_put(jnp.asarray(value, initial.dtype), initial.sharding)

    chosen: Params = jax.tree_util.tree_map_with_path(choose, params)
    if misfits:
        more = f"; and {len(misfits) - MAX_LISTED} more" if len(misfits) > MAX_LISTED else ""
        raise ConfigError(f"config.init={init} has another encoder: {'; '.join(misfits[:MAX_LISTED])}{more}")
    return chosen


def _usable_here(config: Config) -> Config:
    """cuDNN's attention is a matter of speed, and exists on GPUs only."""
    if config.model.attention == "cudnn" and jax.default_backend() != "gpu":
        return dataclasses.replace(config, model=dataclasses.replace(config.model, attention="auto"))
    return config


def is_weights_file(init: str) -> bool:
    """Whether `init` names a file of weights, not the directory of a run."""
    place = parse_path(init, "config.init")
    return bool(place.suffix) and not place.is_dir()


def with_network_of_weights(config: Config, init: str) -> Config:
    """The configuration with the network that the weights `init` describe, and CLIP's normalisation if they are CLIP's.

    Heads cannot be seen in most weights: config.model.heads, else width / 64. Own are drop path, dtype, attention, remat and,
    where one is set, the image size.

    Raises:
        WeightsError: the file cannot be read, or is no ViT that we have.
    """
    _, weights = _read(init)
    vit = weights.config(config.model.heads)
    keys = {field.name for field in dataclasses.fields(Model)} - {*OWN_KEYS, "image_size"}
    network = {key: getattr(vit, key) for key in keys if hasattr(vit, key)}
    height, width = vit.image_size
    size = (
        (height if height == width else (height, width))
        if config.model.image_size is None
        else config.model.image_size
    )
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image_size=size, **network))
    if weights.pre_norm:
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


def read_weights_file(path: Path) -> tuple[Config, Method, Params]:
    """Configuration, method and parameters for encoding with the weights of a file; as `read_run`.

    The method is a classifier whose head is not trained.

    Raises:
        ConfigError, WeightsError: the weights cannot be used.
    """
    config = with_network_of_weights(Config(method={"name": "classify", "num_classes": 1}), str(path))
    config = resolve(config, num_examples=1, num_devices=1, platform=jax.default_backend())
    method = build_method(complete_options(config))
    params = method.init_params(jax.random.key(0))
    encoder = read_encoder(str(path))
    if unknown := sorted(set(params["encoder"]) ^ set(encoder)):
        raise ConfigError(f"{path} does not give a whole encoder: {', '.join(unknown)}")
    return config, method, {**params, "encoder": split_heads(params["encoder"], encoder)}


@functools.lru_cache(maxsize=2)
def _read(init: str) -> tuple[Params, EncoderSpec]:
    state = read_weights(init)
    try:
        return encoder_from(state)
    except WeightsError as error:
        raise WeightsError(f"config.init={init}: {error}") from error
