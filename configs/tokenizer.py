"""A tokenizer: k-means on a frozen network's features of image patches (k-CLIP; docs/papers/mapet.md 8.1).

    ./launch/local.sh --config=configs/tokenizer.py                       demo: patches of digits, no network
    ./launch/local.sh --config=configs/tokenizer.py:imagenet --config.job.weights=RN50x64.safetensors --config.data.data_dir=TFDS

The result, WORKDIR/tokenizer.safetensors, is what `--config.method.weights` of configs/mapet.py and configs/beit.py takes, and
`python -m mim_jax.tokenize`. Weights of OpenAI's CLIP: `python -m mim_jax.convert_torch RN50x64.pt RN50x64.safetensors`. Any ViT
(CLIP, DINO, MAE, ...) is a teacher too: `--config.job.teacher=vit`. Goes on where it was stopped.

| preset | what | time | result |
|---|---|---|---|
| demo | 64 codes of 2 x 2 pixels, digits as in the demo of configs/mapet.py | see docs/results/tokenizers.md | see docs/results/tokenizers.md |
| imagenet | CLIP RN50x64 at 448 px, 8192 codes of 4096 numbers, 4.2 million features (69 GB, 34 as float16) | not measured | not known |
"""

import ml_collections

from mim_jax.config.check import choose_preset, default_config, with_job
from mim_jax.tasks.fit_tokenizer import TokenizerOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default) or imagenet."""
    return choose_preset(preset, {"demo": demo, "imagenet": imagenet})()


def recipe() -> ml_collections.ConfigDict:
    """The fixed view that token ids belong to: the centred square, not mirrored."""
    config = default_config()
    with_job(config, "tokenizer", TokenizerOptions)
    config.augment.crop = "centre_square"
    config.augment.flip = False
    return config


def demo() -> ml_collections.ConfigDict:
    """Seconds on a CPU."""
    config = recipe()
    config.data.source = "digits"
    config.data.mean = (0.31, 0.31, 0.31)
    config.data.std = (0.35, 0.35, 0.35)
    config.augment.crop = "none"
    config.job.teacher = "pixels"
    config.job.image_size = 8
    config.job.patch = 2
    config.job.vocabulary = 64
    config.job.restarts = 2
    return config


def imagenet() -> ml_collections.ConfigDict:
    """The paper's k-CLIP."""
    config = recipe()
    config.data.source = "tfds:imagenet2012"
    config.job.teacher = "clip_resnet"
    config.job.features_dtype = "float16"
    return config
