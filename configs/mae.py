"""MAE: masked autoencoder (He et al. 2021; every default of docs/papers/amt.md 1).

    ./launch/local.sh --config=configs/mae.py                 demo: photographs that come with scikit-image
    ./launch/local.sh --config=configs/mae.py:cifar10 --config.data.source=folder:CIFAR10
    ./launch/local.sh --config=configs/mae.py:imagenet --config.data.data_dir=TFDS

| preset | what | time | result |
|---|---|---|---|
| demo | crops of ten photographs, 32 px, patch 4, decoder 48 x 2 | see docs/results/demos.md | see docs/results/demos.md |
| own | --config.data.source=folder:PATH, 100 epochs; on a CPU ViT nano at up to 64 px | depends on the images | depends on the images |
| cifar10 | ViT-Ti, decoder 128 x 4, 400 epochs (docs/papers/amt.md 7.4) | one GPU; not measured | not known |
| cifar100, stl10, tiny_imagenet | the same recipe on those, 8 x 8 patches | not measured | not known |
| imagenet | ViT-B, decoder 512 x 8, 1600 epochs, batch 4096 | not measured | the paper's: 83.6 fine-tuned, 67.8 linear |
"""

import ml_collections

from mim_jax.config import presets
from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.methods.mae import MaeOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default), own, cifar10 (or another small set), imagenet."""
    return choose_preset(
        preset, {"demo": demo, "own": own, **presets.small_sets(cifar10), "imagenet": imagenet}
    )()


def recipe() -> ml_collections.ConfigDict:
    """What every preset shares."""
    config = default_config()
    with_options(config, "mae", MaeOptions)
    config.model.positions = "sincos_2d"
    config.optim.beta2 = 0.95
    config.optim.weight_decay = 0.05
    config.augment.scale = (0.2, 1.0)
    config.augment.flip = True
    config.method.norm_pix = True
    return config


def demo() -> ml_collections.ConfigDict:
    """Photographs, un-normalised pixels: easier to look at."""
    config = presets.photographs(recipe())
    config.schedule.epochs = 12.0
    config.method.norm_pix = False
    config.method.decoder_width = 48
    config.method.decoder_depth = 2
    config.method.decoder_heads = 3
    return config


def own() -> ml_collections.ConfigDict:
    """A folder of your own; what depends on its images is chosen from them, and printed."""
    config = presets.own(recipe())
    config.method.decoder_width = 96
    config.method.decoder_depth = 2
    config.method.decoder_heads = 3
    return config


def cifar10() -> ml_collections.ConfigDict:
    """One GPU (docs/papers/amt.md 7.4)."""
    config = presets.small_set(recipe())
    config.data.batch_size = 1024
    config.method.decoder_width = 128
    config.method.decoder_depth = 4
    config.method.decoder_heads = 4
    config.schedule.epochs = 400.0
    config.schedule.warmup_epochs = 40.0
    return config


def imagenet() -> ml_collections.ConfigDict:
    """The published recipe: base rate 1.5e-4 per 256 images, cosine to 0 after 40 epochs of warm-up."""
    config = presets.imagenet(recipe())
    config.data.batch_size = 4096
    config.schedule.epochs = 1600.0
    config.schedule.warmup_epochs = 40.0
    return config
