"""A linear probe of a frozen encoder (docs/papers/amt.md 1.5). It needs a run:

    ./launch/local.sh --config=configs/linear_probe.py --config.init=runs/mae-cifar10
    ./launch/local.sh --config=configs/linear_probe.py --config.init=runs/beit-imagenet --config.method.layer=8

Batch normalisation without affine, one linear layer, LARS. Network, normalisation and (unless data.source is set) images are
those of that run. Without augmentation (the default preset) the encoder sees every image once.

| preset | what | time | result |
|---|---|---|---|
| small (default) | features of whole images, computed once; 90 epochs at batch 256 | seconds to minutes | see docs/results/transfer.md |
| cifar10 | the same at batch 1024 | one GPU; not measured | not known |
| imagenet | random crops and flips, 90 epochs at batch 16384, lr 6.4 | not measured | the paper's: 67.8 (MAE, ViT-B) |
| food101, cars, pets, voc2007, ... | as small, on the sets of mim_jax/config/transfer_sets.py | not measured | not known |
"""

import ml_collections

from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.config.transfer_sets import transfer_sets
from mim_jax.methods.classify import ClassifyOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: small (default), imagenet, cifar10, or a set of config/transfer_sets.py."""
    sets = transfer_sets(small) | {"cifar10": cifar10}
    return choose_preset(preset, {"small": small, "imagenet": imagenet, **sets})()


def recipe() -> ml_collections.ConfigDict:
    """MAE's: rate 0.1 per 256 images, 90 epochs, warm-up 10, no decay."""
    config = default_config()
    with_options(config, "classify", ClassifyOptions)
    config.data.source = "init"
    config.method.probe = True
    config.method.head_std = 0.01
    config.optim.name = "lars"
    config.optim.base_lr = 0.1
    config.optim.weight_decay = 0.0
    config.schedule.epochs = 90.0
    config.schedule.warmup_epochs = 10.0
    return config


def small() -> ml_collections.ConfigDict:
    """Fixed views: the features are computed once. A higher rate than MAE's, chosen on features of CIFAR-10."""
    config = recipe()
    config.augment.crop = "centre_square"
    config.augment.flip = False
    config.data.batch_size = 256
    config.optim.lr = 16.0
    return config


def cifar10() -> ml_collections.ConfigDict:
    """As small, at batch 1024."""
    config = small()
    config.data.batch_size = 1024
    return config


def imagenet() -> ml_collections.ConfigDict:
    """Random crops and flips: the encoder runs on every view."""
    config = recipe()
    config.data.batch_size = 16384
    config.method.pool = "cls"
    config.augment.scale = (0.08, 1.0)
    config.augment.flip = True
    config.augment.eval_crop = "resize_centre"
    config.log.every_steps = 10
    return config
