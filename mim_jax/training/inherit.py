"""What a run takes over from an earlier one: its network's shape, its data, and its encoder's parameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils.epath import Path

from mim_jax.config.check import ConfigError, one_of
from mim_jax.config.schema import Config, Model, resolved
from mim_jax.config.variants import SWINS
from mim_jax.interop.files import split_heads
from mim_jax.methods import Method, build_method
from mim_jax.methods.networks import encoder_config
from mim_jax.methods.rules import name_of
from mim_jax.models.surgery import MODES, surgery
from mim_jax.models.swin import SwinConfig
from mim_jax.models.vit import Params, ViTConfig
from mim_jax.storage import parse_path
from mim_jax.training.checkpoints import Checkpoints
from mim_jax.training.imported import is_weights, network_of, read_encoder, with_network_of
from mim_jax.training.sharding import abstract
from mim_jax.training.workdir import read_config, refuse_changed_config

OWN = ("drop_path", "dtype", "attention", "remat", "image_size")
"""Keys of the network that a run has for itself, whatever it starts from."""
SHOWN = 5
"""Parameters named in an error."""


def inherit(config: Config) -> Config:
    """The configuration with the network, normalisation and (source=init) data of the run, or weights, `config.init`.

    Fixed sin-cos positions become learned ones that start from the same table, as in MAE's fine-tuning.
    Own are: drop path, dtype, attention, remat, and the image size where one is set.

    Raises:
        ConfigError: there is no such run, or source=init without one.
    """
    return _cut_short(_inherited(config))


def _inherited(config: Config) -> Config:
    if config.init is None or is_weights(config.init):
        if config.data.source == "init":
            raise ConfigError(
                "config.data.source=init takes the data of a run: name it, --config.init=DIRECTORY, or set config.data.source"
            )
        return config if config.init is None else with_network_of(config, config.init)
    donor, own = read_config(parse_path(config.init, "config.init")), config.model
    positions = "learned" if donor.model.positions.startswith("sincos") else donor.model.positions
    model = dataclasses.replace(
        model_at_size(donor, own.image_size),
        positions=positions,
        drop_path=own.drop_path,
        dtype=own.dtype,
        attention=own.attention,
        remat=own.remat,
    )
    data = dataclasses.replace(config.data, mean=donor.data.mean, std=donor.data.std)
    if data.source == "init":
        same = ("source", "split", "test_split", "data_dir", "on_bad_image", "crops_per_picture")
        data = dataclasses.replace(data, **{name: getattr(donor.data, name) for name in same})
    return dataclasses.replace(config, model=model, data=data)


def model_at_size(donor: Config, image_size: int | tuple[int, int] | None) -> Model:
    """The model of a run for another image size (None = its own); a Swin's position biases keep the windows they know.

    Raises:
        ConfigError: they were trained in windows that are no squares, which a configuration cannot say.
    """
    net = encoder_config(donor)
    if image_size is None:
        return donor.model
    model = dataclasses.replace(donor.model, image_size=image_size)
    if not isinstance(net, SwinConfig) or model.pretrained_windows is not None:
        return model
    if any(rows != columns for rows, columns in net.reference_windows):
        raise ConfigError(
            f"config.model.image_size={image_size}: the encoder of config.init was trained in windows of"
            f" {net.reference_windows}, and only squares can be taken to another size: leave config.model.image_size empty"
        )
    return dataclasses.replace(model, pretrained_windows=tuple(rows for rows, _ in net.reference_windows))


def without_effect(asked: Config, made: Config) -> list[str]:
    """Lines for keys of the network that were set, and are not what the network of `config.init` has."""
    lines = []
    for field in dataclasses.fields(Model):
        wanted, there = getattr(asked.model, field.name), getattr(made.model, field.name)
        if asked.init and field.name not in OWN and wanted not in (field.default, there):
            lines.append(f"model.{field.name}={there}, that of config.init; {wanted} has no effect")
    return lines


def _cut_short(config: Config) -> Config:
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


def _operated(encoder: Params, method: Method, initial: Params) -> Params:
    """The encoder after the surgery that the configuration asks for."""
    s, net = method.config.surgery, method.net
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


def with_encoder_of(init: str, method: Method, params: Params) -> Params:
    """The parameters with the encoder of `init`, a run or a file, laid out as they are; what `method.fresh` names stays.

    Raises:
        ConfigError: naming the parameters that do not fit.
    """
    if is_weights(init):
        encoder = split_heads(params["encoder"], read_encoder(init))
        net: ViTConfig | SwinConfig = network_of(init, method.config.model.heads)
    else:
        _, donor, given, _ = read_run(parse_path(init, "config.init"))
        encoder, net = dict(given["encoder"]), donor.net
    if "pos_embed" in params["encoder"] and "pos_embed" not in encoder:
        encoder["pos_embed"] = net.module.apply({}, method="positions")
    encoder = net.resize(encoder, method.net)  # type: ignore[arg-type]
    encoder = _operated(encoder, method, params)
    there = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path({"encoder": encoder})}
    wrong: list[str] = []

    def choose(path: Any, own: jax.Array) -> jax.Array:
        name = name_of(path)
        if not name.startswith("encoder/") or name.startswith(method.fresh):
            return own
        other = there.get(name)
        if other is None or other.shape != own.shape:
            shape = "absent" if other is None else list(other.shape)
            wrong.append(f"{name} is {shape} there and {list(own.shape)} here")
            return own
        return jax.device_put(jnp.asarray(other, own.dtype), own.sharding)

    made: Params = jax.tree_util.tree_map_with_path(choose, params)
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ConfigError(f"config.init={init} has another encoder: {'; '.join(wrong[:SHOWN])}{more}")
    return made


def _usable_here(config: Config) -> Config:
    """cuDNN's attention is a matter of speed, and exists on GPUs only."""
    if config.model.attention == "cudnn" and jax.default_backend() != "gpu":
        return dataclasses.replace(config, model=dataclasses.replace(config.model, attention="auto"))
    return config
