"""BEiT-like MIM: block-wise hidden patches, token ids (Bao et al. 2021; docs/papers/mapet.md 6).

    ./launch/local.sh --config=configs/beit.py                demo: photographs, k-means tokens of their patches
    ./launch/local.sh --config=configs/beit.py:cifar10 --config.data.source=folder:CIFAR10
    ./launch/local.sh --config=configs/beit.py:imagenet --config.method.tokens=TOKENS --config.data.data_dir=TFDS

`--config.method.masking=random` hides patches uniformly. Block-wise masks that fall short of their goal are topped up.

| preset | what | time | result |
|---|---|---|---|
| demo | crops of ten photographs, 32 px, patch 4, vocabulary 64 | see docs/results/demos.md | see docs/results/demos.md |
| own | --config.data.source=folder:PATH, 100 epochs; on a CPU ViT nano at up to 64 px | depends on the images | depends on the images |
| cifar10 | ViT-Ti, 24 of 64 patches, 400 epochs | one GPU; not measured | not known |
| cifar100, stl10, tiny_imagenet | the same recipe on those, 8 x 8 patches | not measured | not known |
| imagenet | ViT-B, 75 of 196 patches, 800 epochs, from a token cache | not measured | not known |
"""

import ml_collections

from mim_jax.config import presets
from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.methods.mim import MimOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default), own, cifar10 (or another small set), imagenet."""
    return choose_preset(
        preset, {"demo": demo, "own": own, **presets.small_sets(cifar10), "imagenet": imagenet}
    )()


def recipe() -> ml_collections.ConfigDict:
    """What every preset shares: the ViT of BEiT, with its shared relative position bias and no absolute positions."""
    config = default_config()
    with_options(config, "mim", MimOptions)
    config.method.masking = "block"
    config.model.positions = "none"
    config.model.relative_bias = "shared"
    config.model.qkv_bias = "qv"
    config.model.layer_scale = 0.1
    config.model.drop_path = 0.1
    config.optim.beta2 = 0.999
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 3.0
    config.augment.jitter = 0.4
    config.augment.flip = True
    config.schedule.min_lr = 1e-5
    return config


def demo() -> ml_collections.ConfigDict:
    """A minute or two on two CPU cores: random crops of ten photographs, held out to the right of each."""
    config = presets.photographs(recipe())
    config.augment.jitter = 0.0
    config.method.vocabulary = 64
    config.method.num_masked = 24
    config.method.min_block = 6
    config.schedule.epochs = 10.0
    return config


def own() -> ml_collections.ConfigDict:
    """A folder of your own; what depends on its images is chosen from them, and printed."""
    config = presets.own(recipe())
    config.method.vocabulary = 256
    config.method.mask_ratio = 0.4
    config.method.min_block = 6
    return config


def cifar10() -> ml_collections.ConfigDict:
    """One GPU."""
    config = presets.small_set(recipe())
    config.data.batch_size = 512
    config.method.vocabulary = 1024
    config.method.num_masked = 24
    config.method.min_block = 6
    config.optim.lr = 1.5e-3
    config.schedule.epochs = 400.0
    config.schedule.warmup_epochs = 10.0
    return config


def imagenet() -> ml_collections.ConfigDict:
    """Tokens are of the centred square, unflipped, so that is the view; only colour is jittered."""
    config = presets.imagenet(recipe())
    config.data.batch_size = 2048
    config.augment.crop = "centre_square"
    config.augment.flip = False
    config.method.tokenizer = "dalle"
    config.method.num_masked = 75
    config.optim.lr = 1.5e-3
    config.schedule.epochs = 800.0
    config.schedule.warmup_epochs = 10.0
    return config
