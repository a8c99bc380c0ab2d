"""What follows from other keys, filled in after overrides, by one function; and what cannot work together."""

import dataclasses
import math

from mim_jax.config.check import ConfigError
from mim_jax.config.kinds import MOST
from mim_jax.config.scaling import batch_for, network_for, warmup_for
from mim_jax.config.schema import Config, Mesh, Model, resolved
from mim_jax.config.variants import SWINS, VARIANTS


def resolve(
    config: Config, *, num_examples: int, num_devices: int, platform: str, image_side: int | None = None
) -> Config:
    """Fills every None that follows from others and refuses impossible combinations.

    Args:
        config: as checked.
        num_examples: of the training split.
        num_devices: over all hosts.
        platform: "cpu", "gpu" or "tpu".
        image_side: typical shorter side of its pictures, pixels; only variant=auto asks.
    Raises:
        ConfigError: one sentence.
    """
    mesh = resolve_mesh(config.mesh, num_devices)
    data = dataclasses.replace(config.data, batch_size=batch_for(config, mesh, num_examples))
    config = dataclasses.replace(config, data=data, mesh=mesh)
    check_batch(config, mesh)
    model = network_for(config.model, num_examples=num_examples, image_side=image_side, platform=platform)
    config = dataclasses.replace(config, model=resolve_model(model, platform))
    return resolve_durations(config, num_examples)


def resolve_model(model: Model, platform: str) -> Model:
    """Width, depth and heads from the variant; the computation's dtype from the platform; sizes checked."""
    model = _usual(network_for(model, num_examples=0, image_side=None, platform=platform))
    patch, size = resolved(model.patch), image_size(model)
    if any(side % patch for side in size):
        fitting = tuple(max(1, round(side / patch)) * patch for side in size)
        raise ConfigError(
            f"config.model.image_size={model.image_size} is not a multiple of config.model.patch={patch}; the nearest"
            f" is {fitting[0] if isinstance(model.image_size, int) else fitting}"
        )
    dtype = model.dtype if model.dtype != "auto" else ("float32" if platform == "cpu" else "bfloat16")
    model = dataclasses.replace(model, image_size=size, dtype=dtype)
    return _resolve_swin(model) if model.variant in SWINS else _resolve_vit(model, platform)


def image_size(model: Model) -> tuple[int, int]:
    """(height, width) of the encoder's input."""
    size = model.image_size
    return (size, size) if isinstance(size, int) else resolved(size)


def _usual(model: Model) -> Model:
    """Fills in what the papers' networks of that family have."""
    patch, size, eps = (4, 192, 1e-5) if model.variant in SWINS else (16, 224, 1e-6)
    return dataclasses.replace(
        model,
        patch=patch if model.patch is None else model.patch,
        image_size=size if model.image_size is None else model.image_size,
        norm_eps=eps if model.norm_eps is None else model.norm_eps,
    )


def _resolve_swin(model: Model) -> Model:
    for key in ("width", "depth", "heads"):
        if getattr(model, key) is not None:
            raise ConfigError(
                f"config.model.{key} is a ViT's; a Swin's sizes follow from config.model.variant={model.variant}"
            )
    return model


def _resolve_vit(model: Model, platform: str) -> Model:
    sizes = VARIANTS[model.variant]
    width, heads = model.width or sizes["width"], model.heads or sizes["heads"]
    filled = dataclasses.replace(model, width=width, depth=model.depth or sizes["depth"], heads=heads)
    if width % heads:
        raise ConfigError(
            f"config.model.width={width} cannot be split into config.model.heads={heads} equal heads"
        )
    if int(width * filled.mlp_ratio) < 1:
        raise ConfigError(
            f"config.model.mlp_ratio={filled.mlp_ratio:g} leaves an MLP of width {width} no channel: raise it"
        )
    if filled.positions == "sincos_1d" and width % 2:
        raise ConfigError(f"config.model.positions=sincos_1d needs an even width, got {width}")
    if filled.positions == "sincos_2d" and width % 4:
        raise ConfigError(
            f"config.model.positions=sincos_2d needs a width that is a multiple of 4, got {width}"
        )
    if filled.attention == "cudnn" and platform != "gpu":
        raise ConfigError(
            f"config.model.attention=cudnn needs a GPU, this machine computes on {platform}; use auto"
        )
    return filled


def resolve_mesh(mesh: Mesh, num_devices: int) -> Mesh:
    """Fills data=-1 with the devices the other axes leave; the product must be the number of devices."""
    if num_devices % (mesh.fsdp * mesh.tensor):
        raise ConfigError(
            f"config.mesh: fsdp={mesh.fsdp} x tensor={mesh.tensor} does not divide the {num_devices} devices there are"
        )
    data = num_devices // (mesh.fsdp * mesh.tensor) if mesh.data == -1 else mesh.data
    if data * mesh.fsdp * mesh.tensor != num_devices:
        raise ConfigError(
            f"config.mesh: data={data} x fsdp={mesh.fsdp} x tensor={mesh.tensor} is not the {num_devices} devices there are"
            "; data=-1 takes what is left"
        )
    return dataclasses.replace(mesh, data=data)


def check_batch(config: Config, mesh: Mesh) -> None:
    """Batches must split evenly over the devices, that of training over the parts of accumulation, too."""
    parts, shards = config.optim.accumulation, mesh.data * mesh.fsdp
    for key, size, pieces in (
        ("data", config.data.batch_size, parts * shards),
        ("eval", config.eval.batch_size or config.data.batch_size, shards),
    ):
        if size % pieces:
            over = f"config.optim.accumulation={parts} parts and " if key == "data" else ""
            raise ConfigError(
                f"config.{key}.batch_size={size} cannot be split evenly over {over}{shards} devices; the next size that can"
                f" is {math.ceil(size / pieces) * pieces}"
            )


def resolve_durations(config: Config, num_examples: int) -> Config:
    """Steps from epochs, the peak rate from the batch, and how often to log, evaluate and save."""
    batch, s = config.data.batch_size, config.schedule
    per_epoch = num_examples / batch
    asked = (s.epochs + s.cooldown_epochs) * per_epoch if s.steps is None else s.steps
    if asked > MOST:
        raise ConfigError(
            f"config.schedule.epochs={s.epochs:g} of {num_examples} images in batches of {batch} are {asked:.3g} steps, and a run"
            f" has at most {MOST}: lower it"
        )
    steps = max(1, round(asked))
    epochs = s.epochs if s.steps is None else steps / per_epoch - s.cooldown_epochs
    warmup = warmup_for(config, steps, per_epoch)
    if warmup > steps:
        raise ConfigError(
            f"config.schedule.warmup_steps={warmup} is longer than the run of {steps} steps: lower config.schedule.warmup_steps"
        )
    lr = (
        config.optim.lr
        if config.optim.lr is not None
        else config.optim.base_lr * batch / config.optim.lr_batch
    )
    for key in ("min_lr", "warmup_lr"):
        if getattr(s, key) > lr:
            raise ConfigError(
                f"config.schedule.{key}={getattr(s, key):g} is above the peak rate {lr:g} (config.optim.lr, or base_lr *"
                " batch_size / lr_batch): lower the one or raise the other"
            )

    def often(value: int | None, times: int) -> int:
        return value if value is not None else max(1, steps // times)

    return dataclasses.replace(
        config,
        schedule=dataclasses.replace(s, steps=steps, epochs=epochs, warmup_steps=warmup),
        optim=dataclasses.replace(config.optim, lr=lr),
        eval=dataclasses.replace(
            config.eval,
            every_steps=often(config.eval.every_steps, 10),
            batch_size=config.eval.batch_size or batch,
        ),
        checkpoint=dataclasses.replace(
            config.checkpoint, every_steps=often(config.checkpoint.every_steps, 20)
        ),
        log=dataclasses.replace(config.log, every_steps=often(config.log.every_steps, 50)),
    )
