"""Fine-tuning of a pre-trained encoder (docs/papers/amt.md 1.6, docs/papers/mapet.md 10). It needs a run to start from:

    ./launch/local.sh --config=configs/finetune.py --config.init=runs/mae-cifar10
    ./launch/local.sh --config=configs/finetune.py:imagenet --config.init=runs/mae-imagenet --config.data.source=tfds:imagenet2012

Network, normalisation and (unless data.source is set) images are those of that run.

| preset | what | time | result |
|---|---|---|---|
| small (default) | 50 epochs, mixup, cutmix, RandAugment, layer decay 0.75 | depends on the run | see docs/results/transfer.md |
| cifar10 | 100 epochs at batch 1024 (docs/papers/amt.md 7.3) | one GPU; not measured | not known |
| imagenet | 100 epochs at batch 1024, layer decay 0.65 | not measured | the papers': 83.6 (MAE, ViT-B) |
| food101, cars, pets, voc2007, ... | the sets of mim_jax/config/transfer_sets.py, 100 epochs, warm-up 20 | not measured | not known |
"""

import ml_collections

from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.config.transfer_sets import transfer_sets
from mim_jax.methods.classify import ClassifyOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: small (default), imagenet, cifar10, or a set of config/transfer_sets.py."""
    sets = transfer_sets(transfer) | {"cifar10": cifar10}
    return choose_preset(preset, {"small": small, "imagenet": imagenet, **sets})()


def recipe() -> ml_collections.ConfigDict:
    """MAE's: AdamW with layer-wise rates, mixup, cutmix, RandAugment, random erasing, label smoothing, drop path."""
    config = default_config()
    with_options(config, "classify", ClassifyOptions)
    config.data.source = "init"
    config.method.label_smoothing = 0.1
    config.method.mixup = 0.8
    config.method.cutmix = 1.0
    config.method.rand_augment = 2
    config.method.erase = 0.25
    config.model.drop_path = 0.1
    config.optim.layer_decay = 0.75
    config.optim.weight_decay = 0.05
    config.optim.base_lr = 1e-3
    config.schedule.min_lr = 1e-6
    config.schedule.epochs = 100.0
    config.schedule.warmup_epochs = 5.0
    config.augment.scale = (0.08, 1.0)
    config.augment.flip = True
    return config


def small() -> ml_collections.ConfigDict:
    """For small images and small sets: no erasing, gentler crops."""
    config = recipe()
    config.data.batch_size = 128
    config.augment.scale = (0.2, 1.0)
    config.method.erase = 0.0
    config.optim.lr = 1e-3
    config.schedule.epochs = 50.0
    return config


def cifar10() -> ml_collections.ConfigDict:
    """100 epochs at batch 1024."""
    config = recipe()
    config.data.batch_size = 1024
    config.augment.scale = (0.2, 1.0)
    config.method.erase = 0.0
    config.optim.lr = 2e-3
    return config


def imagenet() -> ml_collections.ConfigDict:
    """MAE's ViT-B."""
    config = recipe()
    config.data.batch_size = 1024
    config.augment.eval_crop = "resize_centre"
    config.optim.base_lr = 5e-4
    config.optim.layer_decay = 0.65
    config.log.every_steps = 50
    return config


def transfer() -> ml_collections.ConfigDict:
    """Transfer sets (docs/papers/dark_secrets.md 4.4): SimMIM's augmentation, 100 epochs; rate and decays want a search per encoder."""
    config = recipe()
    config.data.batch_size = 256
    config.optim.base_lr = 1.25e-3
    config.optim.lr_batch = 512
    config.schedule.warmup_epochs = 20.0
    return config
