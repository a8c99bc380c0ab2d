"""AMT: attention-driven masking and throwing (Liu, Gui and Luo 2022; docs/papers/amt.md), on MAE or SimMIM.

    ./launch/local.sh --config=configs/amt.py                                demo: digits, on MAE
    ./launch/local.sh --config=configs/amt.py:demo_simmim                    the same on SimMIM
    ./launch/local.sh --config=configs/amt.py:cifar10 --config.data.source=folder:CIFAR10
    ./launch/local.sh --config=configs/amt.py:imagenet --config.data.data_dir=TFDS

`--config.method.mode=am` masks without throwing. `--config.method.control=random_throw` and `=shuffled_bank` are the
controls: the same counts without attention, and with another image's. `--config.method.mapping=official_corner` takes the
map's corner whatever the crop, as the release does. `--config.method.base=` changes the base alone; the presets
`demo_simmim` and `imagenet_simmim` change its network and recipe as well.

| preset | what | time | result |
|---|---|---|---|
| demo | scikit-learn's digits, 32 px, patch 4; attention from epoch 10 of 40 | see docs/results/amt.md | see docs/results/amt.md |
| own | --config.data.source=folder:PATH, 100 epochs; on a CPU ViT nano at up to 64 px | depends on the images | depends on the images |
| cifar10 | ViT-Ti, decoder 128 x 4, 400 epochs (docs/papers/amt.md 7.4) | one GPU; not measured | not known |
| cifar100, stl10, tiny_imagenet | the same recipe on those, 8 x 8 patches | not measured | not known |
| imagenet | ViT-B, decoder 512 x 8, 400 epochs, batch 4096 | not measured | not known (the paper's tables were not available to us) |
"""

import ml_collections

from mim_jax.config import presets
from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.methods.amt import AmtOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default), own, demo_simmim, cifar10 (or another small set), imagenet(_simmim)."""
    known = {
        "demo": demo,
        "own": own,
        "demo_simmim": demo_simmim,
        **presets.small_sets(cifar10),
        "imagenet": imagenet,
        "imagenet_simmim": imagenet_simmim,
    }
    return choose_preset(preset, known)()


def mae_recipe() -> ml_collections.ConfigDict:
    """MAE's, with un-normalised targets as in AMT's release."""
    config = default_config()
    with_options(config, "amt", AmtOptions)
    config.model.positions = "sincos_2d"
    config.optim.beta2 = 0.95
    config.optim.weight_decay = 0.05
    config.augment.scale = (0.2, 1.0)
    config.augment.flip = True
    return config


def simmim_recipe() -> ml_collections.ConfigDict:
    """SimMIM's, but with learned positions and no relative bias, as in AMT's release."""
    config = default_config()
    with_options(config, "amt", AmtOptions)
    config.method.base = "simmim"
    config.model.qkv_bias = "qv"
    config.model.layer_scale = 0.1
    config.model.drop_path = 0.1
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 5.0
    config.optim.base_lr = 1e-4
    config.optim.lr_batch = 512
    config.augment.scale = (0.67, 1.0)
    config.augment.resample = "bilinear"
    config.augment.flip = True
    config.schedule.cosine_from = "start"
    return config


def digits(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A minute or two on two CPU cores."""
    config = presets.digits(config)
    config.method.start = 9
    config.method.interval = 5
    config.method.decoder_width = 48
    config.method.decoder_depth = 2
    config.method.decoder_heads = 3
    config.optim.lr = 1.5e-3
    config.schedule.epochs = 40.0
    config.schedule.warmup_epochs = 2.0
    config.eval.heldout_examples = 512
    return config


def demo() -> ml_collections.ConfigDict:
    """On MAE."""
    return digits(mae_recipe())


def demo_simmim() -> ml_collections.ConfigDict:
    """On SimMIM: its encoder runs on all patches, so fewer epochs."""
    config = digits(simmim_recipe())
    config.schedule.epochs = 24.0
    return config


def own() -> ml_collections.ConfigDict:
    """A folder of your own; what depends on its images is chosen from them, and printed."""
    config = presets.own(mae_recipe())
    config.method.decoder_width = 96
    config.method.decoder_depth = 2
    config.method.decoder_heads = 3
    return config


def cifar10() -> ml_collections.ConfigDict:
    """One GPU (docs/papers/amt.md 7.4)."""
    config = presets.small_set(mae_recipe())
    config.data.batch_size = 1024
    config.method.decoder_width = 128
    config.method.decoder_depth = 4
    config.method.decoder_heads = 4
    config.method.bank = "device"
    config.method.start = config.method.interval = 40
    config.schedule.epochs = 400.0
    config.schedule.warmup_epochs = 40.0
    return config


def imagenet() -> ml_collections.ConfigDict:
    """The release's: base rate 1.5e-4 per 256 images, 400 epochs, warm-up 40."""
    config = presets.imagenet(mae_recipe())
    config.method.start = config.method.interval = 40
    config.data.batch_size = 4096
    config.schedule.epochs = 400.0
    config.schedule.warmup_epochs = 40.0
    return config


def imagenet_simmim() -> ml_collections.ConfigDict:
    """The release's: rates per 512 images, 200 epochs, warm-up 10, cosine to 5e-6."""
    config = presets.imagenet(simmim_recipe())
    config.method.start = config.method.interval = 40
    config.data.batch_size = 2048
    config.schedule.epochs = 200.0
    config.schedule.warmup_epochs = 10.0
    config.schedule.warmup_lr = 2e-6
    config.schedule.min_lr = 2e-5
    return config
