"""SimMIM: a simple framework for masked image modelling (Xie et al. 2021; every default of docs/papers/amt.md 2).

    ./launch/local.sh --config=configs/simmim.py              demo: photographs that come with scikit-image
    ./launch/local.sh --config=configs/simmim.py:cifar10 --config.data.source=folder:CIFAR10
    ./launch/local.sh --config=configs/simmim.py:imagenet --config.data.data_dir=TFDS

The official schedule drops the rate by ten at epoch 700 of 800; ours is its cosine. `update u runs with the rate of
u - 1` there; ours runs with the rate of u.

| preset | what | time | result |
|---|---|---|---|
| demo | crops of ten photographs, 32 px, patch 4, units of 8 px | see docs/results/demos.md | see docs/results/demos.md |
| own | --config.data.source=folder:PATH, 100 epochs; on a CPU ViT nano at up to 64 px | depends on the images | depends on the images |
| cifar10 | ViT-Ti, 400 epochs | one GPU; not measured | not known |
| cifar100, stl10, tiny_imagenet | the same recipe on those, 8 x 8 patches | not measured | not known |
| imagenet | ViT-B, shared relative position bias, 800 epochs, batch 2048 | not measured | the paper's: 83.8 fine-tuned (step schedule) |
"""

import ml_collections

from mim_jax.config import presets
from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.methods.simmim import SimmimOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default), own, cifar10 (or another small set), imagenet."""
    return choose_preset(
        preset, {"demo": demo, "own": own, **presets.small_sets(cifar10), "imagenet": imagenet}
    )()


def recipe() -> ml_collections.ConfigDict:
    """What every preset shares: the ViT of SimMIM."""
    config = default_config()
    with_options(config, "simmim", SimmimOptions)
    config.model.positions = "none"
    config.model.relative_bias = "shared"
    config.model.qkv_bias = "qv"
    config.model.layer_scale = 0.1
    config.model.drop_path = 0.1
    config.optim.beta2 = 0.999
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 5.0
    config.optim.base_lr = 1e-4
    config.optim.lr_batch = 512
    config.augment.scale = (0.67, 1.0)
    config.augment.resample = "bilinear"
    config.augment.flip = True
    config.schedule.cosine_from = "start"
    return config


def demo() -> ml_collections.ConfigDict:
    """A minute or two on two CPU cores: random crops of ten photographs, held out to the right of each."""
    config = presets.photographs(recipe())
    config.schedule.epochs = 10.0
    return config


def own() -> ml_collections.ConfigDict:
    """A folder of your own; what depends on its images is chosen from them, and printed."""
    config = presets.own(recipe())
    return config


def cifar10() -> ml_collections.ConfigDict:
    """One GPU; units of 2 x 2 patches as at full size."""
    config = presets.small_set(recipe())
    config.data.batch_size = 1024
    config.optim.base_lr = 3e-4
    config.schedule.epochs = 400.0
    config.schedule.warmup_epochs = 20.0
    return config


def imagenet() -> ml_collections.ConfigDict:
    """The published ViT-B recipe: rates per 512 images, units of 32 px."""
    config = presets.imagenet(recipe())
    config.data.batch_size = 2048
    config.schedule.epochs = 800.0
    config.schedule.warmup_epochs = 10.0
    config.schedule.warmup_lr = 2e-6
    return config
