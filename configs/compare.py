"""Methods under one protocol: the same images, network, batch, rate and epochs; then k-NN, linear probe and fine-tuning.

    python -m mim_jax.compare --config=configs/compare.py --config.data=CIFAR10_MINI --workdir=runs/compare-mini
    python -m mim_jax.compare --config=configs/compare.py:cifar10 --config.data=CIFAR10 --workdir=runs/compare-cifar10

PATH in `--config.data=PATH` is that of the source `folder:PATH`: a folder of images for every class, with train and test (or
val, valid, validation) above them; without these a tenth is held out.

`--config.only=mae,mapet` compares some arms; `--config.arms.mine=configs/mae.py:cifar10,method.mask_ratio=0.5` adds one (what
a spec sets wins over what is shared). `--config.seeds=0,1,2` (one seed: `0,`). Any key of a run may stand under `shared`:
`--config.shared.schedule.epochs=10`. `--config.budget=seconds --config.seconds=600`: equal time instead of equal images.

Augmentation, weight decay, clipping, positions and CLS stay each method's own recipe. The learning rate is one for all,
tuned for none: where that matters give an arm its own, `--config.arms.mae=configs/mae.py:cifar10,optim.lr=1e-3`.

| preset | what | time | result |
|---|---|---|---|
| demo, cifar10_mini | ViT nano, 16 epochs of 2,000 images of 32 px, 2 seeds | 40 minutes on two CPU cores, `--jobs=2` | docs/results/compare_mini.md |
| cifar10 | ViT-Ti, 100 epochs of 50,000 images of 32 px, 3 seeds | one GPU; not measured | not known |
| amt | AMT, its controls and MAE, as cifar10 | one GPU; not measured | not known |
| amt_small | the same on ViT nano and 4 epochs | about an hour on two CPU cores, `--jobs=2` | docs/results/amt.md |
"""

import ml_collections

from mim_jax.compare.config import default_comparison
from mim_jax.config.check import choose_preset

RARELY = 10**9
"""Steps between evaluations: the last step is always evaluated, and the others would cost time."""


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default; the same as cifar10_mini), cifar10, or amt(_small): AMT's controls."""
    known = {
        "demo": cifar10_mini,
        "cifar10_mini": cifar10_mini,
        "cifar10": cifar10,
        "amt": amt,
        "amt_small": amt_small,
    }
    return choose_preset(preset, known)()


UNTRAINED = "configs/mae.py:cifar10,schedule.steps=1,schedule.warmup_steps=0,optim.lr=0.0"
"""One step of rate 0: the initial weights."""


def methods(start: int, interval: int) -> dict[str, str]:
    """Every objective. start, interval: epochs, of AMT."""
    return {
        "random": UNTRAINED,
        "supervised": "configs/supervised.py:cifar10",
        "mae": "configs/mae.py:cifar10",
        "simmim": "configs/simmim.py:cifar10",
        "mim": "configs/mapet.py:cifar10,method.objective=mim",
        "pim": "configs/mapet.py:cifar10,method.objective=pim",
        "mapet": "configs/mapet.py:cifar10",
        "beyond_mask": "configs/beyond_masking.py:cifar10,method.task=mask",
        "beyond_zoom_in": "configs/beyond_masking.py:cifar10,method.task=zoom_in",
        "beyond_zoom_in+mask": "configs/beyond_masking.py:cifar10,method.task=zoom_in+mask",
        "amt": f"configs/amt.py:cifar10,method.start={start},method.interval={interval}",
    }


def amt_controls(start: int, interval: int) -> dict[str, str]:
    """What of AMT does what: the map, its alignment with the crop, throwing."""
    amt = methods(start, interval)["amt"]
    return {
        "random": UNTRAINED,
        "mae": "configs/mae.py:cifar10,method.norm_pix=False",  # AMT's targets
        "random_throw": f"{amt},method.control=random_throw",
        "amt": amt,
        "official_corner": f"{amt},method.mapping=official_corner",
        "am": f"{amt},method.mode=am",
        "shuffled_bank": f"{amt},method.control=shuffled_bank",
    }


def protocol(epochs: int, arms: dict[str, str], warmup_epochs: float) -> ml_collections.ConfigDict:
    """What all presets share."""
    config = default_comparison()
    config.arms.update(arms)
    config.shared.update(
        model=dict(image_size=32, patch=4, drop_path=0.0),
        schedule=dict(epochs=float(epochs), warmup_epochs=warmup_epochs),
        optim=dict(lr=1.5e-3),
        eval=dict(every_steps=RARELY, baselines=False),
        checkpoint=dict(keep_last=1),
        log=dict(tensorboard=False),
    )
    for stage in ("probe", "finetune"):
        config.evaluate_shared[stage] = dict(
            eval=dict(every_steps=RARELY, baselines=False, knn=False),
            checkpoint=dict(keep_last=1),
            log=dict(tensorboard=False),
        )
    config.columns = (
        ("k-NN top-1 %", "pretrain", "eval/knn_top1", "higher", 100.0),
        ("linear probe top-1 %", "probe", "eval/top1", "higher", 100.0),
        ("fine-tuned top-1 %", "finetune", "eval/top1", "higher", 100.0),
        ("steps", "pretrain", "step", "plain", 1.0),
        ("images/s", "pretrain", "perf/images_per_sec", "plain", 1.0),
        ("GFLOP an image", "pretrain", "perf/gflops_per_image", "plain", 1.0),
        ("peak memory MiB", "pretrain", "perf/peak_memory_mib", "plain", 1.0),
        ("pre-training wall s", "pretrain", "wall_seconds", "plain", 1.0),
    )
    # More than an epoch of random masking, so that AMT's calibration is in the phase where attention drives.
    config.calibration.update(
        method=dict(start=0, interval=1), eval=dict(knn=False, baselines=False, heldout_examples=64)
    )
    config.epoch_keys = ("schedule.warmup_epochs", "method.start", "method.interval")
    return config


def nano(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Four blocks of width 96, and a decoder of half of that."""
    config.shared.model.variant = "nano"
    config.shared.method = dict(decoder_width=48, decoder_depth=2, decoder_heads=3)
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """ViT-Ti, three seeds."""
    config.seeds = (0, 1, 2)
    config.shared.model.variant = "ti"
    config.shared.data = dict(batch_size=512)
    config.shared.method = dict(decoder_width=128, decoder_depth=4, decoder_heads=4)
    config.evaluate.update(probe="configs/linear_probe.py:cifar10", finetune="configs/finetune.py:cifar10")
    config.calibration_steps = 300
    return config


def cifar10_mini() -> ml_collections.ConfigDict:
    """2,000 images on a CPU."""
    config = nano(protocol(epochs=16, arms=methods(start=1, interval=1), warmup_epochs=1.0))
    config.seeds = (0, 1)
    config.shared.data = dict(batch_size=64)
    config.shared.method.vocabulary = 256
    config.shared.eval.heldout_examples = 500
    config.evaluate.update(probe="configs/linear_probe.py:small", finetune="configs/finetune.py:small")
    # RandAugment takes as long as everything else on a CPU.
    config.evaluate_shared.finetune.method = dict(rand_augment=0)
    config.evaluate_shared.finetune.schedule = dict(epochs=8.0, warmup_epochs=1.0)
    return config


def cifar10() -> ml_collections.ConfigDict:
    """50,000 images on one GPU."""
    return tiny(protocol(epochs=100, arms=methods(start=10, interval=10), warmup_epochs=10.0))


def amt() -> ml_collections.ConfigDict:
    """50,000 images on one GPU."""
    return tiny(protocol(epochs=100, arms=amt_controls(start=10, interval=10), warmup_epochs=10.0))


def amt_small() -> ml_collections.ConfigDict:
    """50,000 images on a CPU; k-NN and probe alone."""
    config = nano(protocol(epochs=4, arms=amt_controls(start=0, interval=2), warmup_epochs=0.5))
    config.seeds = (0, 1, 2)
    config.shared.data = dict(batch_size=128)
    config.shared.eval.heldout_examples = 10000
    config.evaluate.probe = "configs/linear_probe.py:small"
    del config.evaluate_shared["finetune"]
    config.columns = tuple(column for column in config.columns if column[1] != "finetune")
    return config
