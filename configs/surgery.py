"""Claim C3 of "Dark Secrets of MIM" as a study: fine-tune from pre-trained weights whose last blocks are drawn anew, or shuffled.

    python -m mim_jax.compare --config=configs/surgery.py --config.runs=runs/simmim-cifar10,runs/supervised-cifar10 \\
      --workdir=runs/surgery

Every run (a work directory, or a ViT as FILE.safetensors; then also --config.shared.data.source=folder:PATH) is an arm as it is,
with its last 1, 2, 4, 6, 8 blocks drawn anew (as far as it has them), and with its blocks in a random order. All are fine-tuned by
one recipe, with the same seeds. The paper's reported shape: a supervised encoder gains where its last blocks are dropped, a masked
one loses. `--config.only=...`, `--config.seeds=...` and any key under `shared` as in configs/compare.py.

| preset | what | time | result |
|---|---|---|---|
| demo | 8 epochs of fine-tuning, 2 seeds | not measured | not known |
| cifar10 | 100 epochs, 3 seeds | one GPU; not measured | not known |
"""

import ml_collections

from mim_jax.compare.config import default_comparison
from mim_jax.config.check import choose_preset

DROPPED = (0, 1, 2, 4, 6, 8)


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default) or cifar10."""
    return choose_preset(preset, {"demo": demo, "cifar10": cifar10})()


def study(recipe: str, epochs: int) -> ml_collections.ConfigDict:
    """What both presets share. `{run}` in a spec stands for each of config.runs."""
    config = default_comparison()
    for blocks in DROPPED:
        mode = "reinit" if blocks else "none"
        config.arms[f"reinit{blocks}"] = f"{recipe},init={{run}},surgery.mode={mode},surgery.blocks={blocks}"
    config.arms.shuffle = f"{recipe},init={{run}},surgery.mode=shuffle"
    config.shared.update(
        data=dict(source="init"),
        schedule=dict(epochs=float(epochs)),
        eval=dict(every_steps=10**9, baselines=False),
        checkpoint=dict(keep_last=1),
        log=dict(tensorboard=False),
    )
    config.columns = (
        ("fine-tuned top-1 %", "pretrain", "eval/top1", "higher", 100.0),
        ("wall s", "pretrain", "wall_seconds", "plain", 1.0),
    )
    return config


def demo() -> ml_collections.ConfigDict:
    """A CPU."""
    config = study("configs/finetune.py:small,method.rand_augment=0,schedule.warmup_epochs=1.0", 8)
    config.seeds = (0, 1)
    return config


def cifar10() -> ml_collections.ConfigDict:
    """One GPU."""
    config = study("configs/finetune.py:cifar10", 100)
    config.seeds = (0, 1, 2)
    return config
