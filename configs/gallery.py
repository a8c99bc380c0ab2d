"""Every corruption of Beyond Masking on one image, side by side: image, input of the network, target, scored part.

    ./launch/local.sh --config=configs/gallery.py                              a photograph of scikit-image
    ./launch/local.sh --config=configs/gallery.py --config.data.source=folder:PATH --config.augment.eval_crop=centre_square

Seconds; writes runs/gallery-demo/gallery.png. `--config.seed=1` draws anew.
"""

import ml_collections

from mim_jax.config.check import choose_preset, default_config, with_options
from mim_jax.methods.beyond_masking import BeyondMaskingOptions


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The one preset, demo: 224 px, patches of 16 px."""
    return choose_preset(preset, {"demo": demo})()


def demo() -> ml_collections.ConfigDict:
    """The paper's sizes: 288 px (zoom_in), 224, 160 (zoom_out)."""
    config = default_config()
    config.task = "gallery"
    with_options(config, "beyond_masking", BeyondMaskingOptions)
    config.data.source = "photos"
    config.augment.scale = (0.3, 0.9)
    config.augment.eval_crop = "random_resized"
    config.model.cls = False
    config.model.image_size = 224
    config.model.patch = 16
    config.data.test_split = "train"  # the left three quarters of each photograph
    config.seed = 3
    return config
