"""MAE: masked autoencoder (He et al. 2021; every default of spec amt.md 1).

    ./launch/local.sh --config=configs/mae.py                 demo: photographs that come with scikit-image
    ./launch/local.sh --config=configs/mae.py:cifar10 --config.data.source=folder:CIFAR10
    ./launch/local.sh --config=configs/mae.py:imagenet --config.data.data_dir=TFDS

| preset | what | time | result |
|---|---|---|---|
| demo | crops of ten photographs, 32 px, patch 4, decoder 48 x 2 | see docs/results/demos.md | see docs/results/demos.md |
| cifar10 | ViT-Ti, decoder 128 x 4, 400 epochs (spec amt.md 7.4) | one GPU; not measured | not known |
| imagenet | ViT-B, decoder 512 x 8, 1600 epochs, batch 4096 | not measured | the paper's: 83.6 fine-tuned, 67.8 linear |
"""

import ml_collections

from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.methods.mae import MaeOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default), cifar10 or imagenet."""
    return choose_preset(preset, {"demo": demo, "cifar10": cifar10, "imagenet": imagenet})()


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


def photographs(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A minute or two on two CPU cores: random crops of ten photographs, held out to the right of each."""
    config.data.source = "photos"
    config.data.crops_per_picture = 256
    config.data.batch_size = 64
    config.augment.scale = (0.05, 0.4)
    config.augment.eval_crop = "random_resized"
    config.model.variant = "nano"
    config.model.image_size = 32
    config.model.patch = 4
    config.optim.lr = 1.5e-3
    config.schedule.epochs = 12.0
    config.schedule.warmup_epochs = 1.0
    config.eval.knn = False  # the label is the number of the photograph
    config.eval.heldout_examples = 512
    return config


def demo() -> ml_collections.ConfigDict:
    """Photographs, un-normalised pixels: easier to look at."""
    config = photographs(recipe())
    config.method.norm_pix = False
    config.method.decoder_width = 48
    config.method.decoder_depth = 2
    config.method.decoder_heads = 3
    return config


def cifar10() -> ml_collections.ConfigDict:
    """One GPU (spec amt.md 7.4)."""
    config = recipe()
    config.data.source = "tfds:cifar10"
    config.data.batch_size = 1024
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.model.variant = "ti"
    config.model.image_size = 32
    config.model.patch = 4
    config.method.decoder_width = 128
    config.method.decoder_depth = 4
    config.method.decoder_heads = 4
    config.schedule.epochs = 400.0
    config.schedule.warmup_epochs = 40.0
    return config


def imagenet() -> ml_collections.ConfigDict:
    """The published recipe: base rate 1.5e-4 per 256 images, cosine to 0 after 40 epochs of warm-up."""
    config = recipe()
    config.data.source = "tfds:imagenet2012"
    config.data.batch_size = 4096
    config.model.variant = "b"
    config.model.image_size = 224
    config.model.patch = 16
    config.schedule.epochs = 1600.0
    config.schedule.warmup_epochs = 40.0
    config.eval.every_steps = 12500
    config.log.every_steps = 50
    config.checkpoint.every_steps = 2500
    return config
