"""MaPeT: masked and permuted prediction of token ids (arXiv 2306.07346).

    ./launch/local.sh --config=configs/mapet.py                 demo: scikit-learn's digits
    ./launch/local.sh --config=configs/mapet.py:cifar10 --config.data.source=folder:CIFAR10
    ./launch/local.sh --config=configs/mapet.py:imagenet --config.method.tokens=TOKENS --config.data.data_dir=TFDS

`--config.method.objective=mapet | pim | full_pim | grouped | mim` compares the objectives under one recipe.
`--config.model.variant=ti | s | b` picks the network.

| preset | what | time | result |
|---|---|---|---|
| demo | 1,437 digits at 16 px, patch 2, 64 tokens, vocabulary 64 | see README | see README |
| own | --config.data.source=folder:PATH, 100 epochs; on a CPU ViT nano at up to 64 px | depends on the images | depends on the images |
| cifar10 | ViT-Ti, 32 px, patch 4, k-means tokens of pixels, 200 epochs | one GPU; not measured | not known |
| cifar100, stl10, tiny_imagenet | the same recipe on those, 8 x 8 patches | not measured | not known |
| imagenet | the paper's recipe (300 epochs, batch 2048) | not measured | not known (no table of the paper could be had) |
"""

import ml_collections

from mim_jax.config import presets
from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.methods.mapet import MapetOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default), own, cifar10 (or another small set), imagenet."""
    return choose_preset(
        preset, {"demo": demo, "own": own, **presets.small_sets(cifar10), "imagenet": imagenet}
    )()


def recipe() -> ml_collections.ConfigDict:
    """What every preset shares: the paper's network and optimiser (docs/papers/mapet.md 5 and 9)."""
    config = default_config()
    with_options(config, "mapet", MapetOptions)
    config.model.layer_scale = 0.1
    config.model.drop_path = 0.1
    config.optim.beta2 = 0.999
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 3.0
    config.augment.jitter = 0.4
    config.augment.flip = False
    config.schedule.cosine_from = "start"
    config.schedule.warmup_lr = 1e-6
    config.schedule.min_lr = 1e-5
    return config


def demo() -> ml_collections.ConfigDict:
    """Two minutes on two CPU cores: digits of 8 px in 16 patches of 2 px; context CLS and 4 patches, 12 targets."""
    config = recipe()
    config.data.source = "digits"
    config.data.batch_size = 64
    config.data.mean = (0.31, 0.31, 0.31)
    config.data.std = (0.35, 0.35, 0.35)
    config.model.variant = "nano"
    config.model.image_size = 8
    config.model.patch = 2
    config.model.drop_path = 0.0
    config.augment.crop = "none"
    config.augment.eval_crop = "none"
    config.augment.jitter = 0.0
    config.method.vocabulary = 64
    config.optim.lr = 3e-3
    config.schedule.epochs = 90.0
    config.schedule.warmup_epochs = 3.0
    return config


def own() -> ml_collections.ConfigDict:
    """A folder of your own; what depends on its images is chosen from them, and printed."""
    config = presets.own(recipe())
    config.method.vocabulary = 256
    config.augment.flip = True
    return config


def cifar10() -> ml_collections.ConfigDict:
    """One GPU. Images of 32 px in 64 patches: context 17 slots, 48 targets."""
    config = presets.small_set(recipe())
    config.data.batch_size = 512
    config.augment.flip = True
    config.method.vocabulary = 1024
    config.optim.lr = 1.5e-3
    config.schedule.epochs = 200.0
    config.schedule.warmup_epochs = 10.0
    return config


def imagenet() -> ml_collections.ConfigDict:
    """The paper's run. Tokens are of the centred square, so that is the view; only colour is jittered.

    The official code changes the rate once an epoch and adds 10 epochs at the minimum (--config.schedule.per_epoch=True
    --config.schedule.cooldown_epochs=10); per step over exactly 300 epochs is the default here.
    """
    config = presets.imagenet(recipe())
    config.data.batch_size = 2048
    config.augment.crop = "centre_square"
    config.method.tokenizer = "kclip"
    config.optim.lr = 1.5e-3
    config.schedule.epochs = 300.0
    config.schedule.warmup_epochs = 10.0
    return config
