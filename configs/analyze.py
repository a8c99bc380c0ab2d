"""What finished runs attend to: distance, entropy and diversity of heads, CKA between layers ("Dark Secrets of MIM").

    ./launch/local.sh --config=configs/analyze.py --config.runs=runs/mae-demo,runs/supervised-demo
    ./launch/local.sh --config=configs/analyze.py --config.runs=A,B,C --config.data.source=folder:IMAGES --workdir=runs/abc

Runs are work directories, or ViT weights as FILE.safetensors. Each is looked at on held-out images of its own, with its own
normalisation, unless `data.source` names images for all. The runs must see images of one size.

Writes report.html (opens offline), layers.png, cka.png, attention-N.png, rollout.png, heads.csv, layers.csv, cka.csv; prints
whether the paper's claims are seen in these runs: C1 (masked pre-training keeps local heads in every layer), C2 (and different
heads in the last three), C6 (and its layers resemble each other). All options: mim_jax/analysis/runs.py.

| preset | what | time | result |
|---|---|---|---|
| demo | 256 images a run | half a minute for two small runs on two CPU cores | depends on the runs |
| imagenet | 1,000 images a run, minibatches of 50 | 1.1 to 1.3 forward passes of a ViT-B (`python -m mim_jax.analysis.bench`, CPU) | not known |
"""

import ml_collections

from mim_jax.analysis.runs import RUN_IMAGES, AnalysisOptions
from mim_jax.config.check import choose_preset, default_config, with_job


def get_config(preset: str | None = None) -> ml_collections.ConfigDict:
    """The configuration of a preset: demo (default) or imagenet."""
    return choose_preset(preset, {"demo": demo, "imagenet": imagenet})()


def demo() -> ml_collections.ConfigDict:
    """Small networks."""
    config = default_config()
    with_job(config, "analyze", AnalysisOptions)
    config.data.source = RUN_IMAGES
    return config


def imagenet() -> ml_collections.ConfigDict:
    """The number of images that public code takes."""
    config = demo()
    config.job.images = 1000
    config.job.batch = 50
    config.job.cka_batch = 50
    return config
