"""Classification from scratch, for comparison with what pre-training gives.

    ./launch/local.sh --config=configs/supervised.py                demo: digits
    ./launch/local.sh --config=configs/supervised.py:cifar10 --config.data.source=folder:CIFAR10

| preset | what | time | result |
|---|---|---|---|
| demo | scikit-learn's digits, 32 px, patch 4 | see docs/results/transfer.md | see docs/results/transfer.md |
| own | --config.data.source=folder:PATH, 100 epochs; on a CPU ViT nano at up to 64 px | depends on the images | depends on the images |
| cifar10 | ViT-Ti, 100 epochs | one GPU; not measured | not known |
| cifar100, stl10, tiny_imagenet | the same recipe on those, 8 x 8 patches | not measured | not known |
| imagenet | ViT-B, 300 epochs | not measured | not known |
"""

import ml_collections

from mim_jax.config import presets
from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.methods.classify import ClassifyOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default), own, cifar10 (or another small set), imagenet."""
    return choose_preset(
        preset, {"demo": demo, "own": own, **presets.small_sets(cifar10), "imagenet": imagenet}
    )()


def recipe() -> ml_collections.ConfigDict:
    """Augmentation of the papers' classifiers, AdamW, cosine."""
    config = default_config()
    with_options(config, "classify", ClassifyOptions)
    config.method.head_std = 0.02
    config.method.label_smoothing = 0.1
    config.method.mixup = 0.8
    config.method.cutmix = 1.0
    config.method.rand_augment = 2
    config.method.erase = 0.25
    config.model.drop_path = 0.1
    config.model.positions = "sincos_2d"
    config.optim.base_lr = 1e-4
    config.optim.weight_decay = 0.3
    config.optim.beta2 = 0.95
    config.augment.scale = (0.08, 1.0)
    config.augment.flip = True
    config.augment.eval_crop = "resize_centre"
    return config


def demo() -> ml_collections.ConfigDict:
    """A minute or two on two CPU cores. Digits are not mirrored, mixed or erased."""
    config = presets.digits(recipe())
    config.augment.eval_crop = "centre_square"
    config.method.mixup = 0.0
    config.method.cutmix = 0.0
    config.method.rand_augment = 0
    config.method.erase = 0.0
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.05
    config.schedule.epochs = 20.0
    config.schedule.warmup_epochs = 2.0
    return config


def own() -> ml_collections.ConfigDict:
    """A folder of your own; what depends on its images is chosen from them, and printed."""
    config = presets.own(recipe())
    return config


def cifar10() -> ml_collections.ConfigDict:
    """One GPU; the sizes of the other cifar10 presets."""
    config = presets.small_set(recipe())
    config.data.batch_size = 512
    config.augment.scale = (0.2, 1.0)
    config.augment.eval_crop = "centre_square"
    config.method.erase = 0.0
    config.optim.lr = 1e-3
    config.optim.weight_decay = 0.05
    config.schedule.epochs = 100.0
    config.schedule.warmup_epochs = 10.0
    return config


def imagenet() -> ml_collections.ConfigDict:
    """300 epochs at batch 4096."""
    config = presets.imagenet(recipe())
    config.data.batch_size = 4096
    config.schedule.epochs = 300.0
    config.schedule.warmup_epochs = 20.0
    config.eval.every_steps = 6250
    return config
