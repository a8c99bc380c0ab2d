"""Claims C4 and C5 of "Dark Secrets of MIM" as a study: the same encoders fine-tuned on fine-grained and on broad sets.

    python -m mim_jax.compare --config=configs/transfer.py --config.runs=runs/simmim-imagenet,runs/supervised-imagenet \\
      --config.shared.data.data_dir=TFDS --workdir=runs/transfer

Every run (a work directory, or a ViT as FILE.safetensors) on every set of mim_jax/config/transfer_sets.py, by one recipe;
`--config.only=cars-simmim-imagenet,...` names some. The paper's finding: masked pre-training is ahead on fine-grained sets (Food,
Birdsnap, Cars, Aircraft, iNaturalist), supervised pre-training where its labels cover the classes (CIFAR). Aircraft, Pets,
Caltech-101 and Flowers are judged by the mean per class, VOC2007 by the 11-point mAP: both are columns. Not measured.
"""

import ml_collections

from mim_jax.compare.config import default_comparison
from mim_jax.config.check import choose_preset
from mim_jax.config.transfer_sets import TRANSFER_SETS


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The one preset, all: every set, 3 seeds."""
    return choose_preset(preset, {"all": study})()


def study() -> ml_collections.ConfigDict:
    """One recipe, `transfer` of configs/finetune.py, for all sets and runs."""
    config = default_comparison()
    for name in TRANSFER_SETS:
        config.arms[name] = f"configs/finetune.py:{name},init={{run}}"
    config.seeds = (0, 1, 2)
    config.shared.update(
        schedule=dict(epochs=100.0),
        eval=dict(every_steps=10**9, baselines=False),
        checkpoint=dict(keep_last=1),
        log=dict(tensorboard=False),
    )
    config.columns = (
        ("top-1 %", "pretrain", "eval/top1", "higher", 100.0),
        ("mean per class %", "pretrain", "eval/mean_per_class", "higher", 100.0),
        ("11-point mAP %", "pretrain", "eval/map_11_point", "higher", 100.0),
        ("wall s", "pretrain", "wall_seconds", "plain", 1.0),
    )
    return config
