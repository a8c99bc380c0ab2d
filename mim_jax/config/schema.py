"""The one configuration tree, as frozen dataclasses: every key, its kind and range (`kinds.py`), its default and what it means.

`None` means "follows from others": `resolve.py` fills it after overrides. The options of a method are a dataclass in
the method's own file; they form the section `method` beside its `name`. What binds several keys is in `resolve.py`.
"""

import dataclasses
from typing import Annotated, Any, TypeVar

from mim_jax.config.kinds import (
    Block,
    Count,
    CountOrZero,
    Depth,
    Epochs,
    Heads,
    Name,
    Range,
    Rate,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    Side,
    Text,
    Values,
    Width,
    words,
)
from mim_jax.config.variants import SWINS, VARIANTS

T = TypeVar("T")

Crop = Annotated[str, words("random_resized", "centre_square", "resize_centre", "squash", "none")]
Colour = tuple[Share, Share, Share]
Deviation = Annotated[float, Range(1e-4, 100)]
Spread = tuple[Deviation, Deviation, Deviation]
Ratio = Annotated[float, Range(0, 1000, above=True)]
Neighbours = Annotated[int, Range(1, 10_000)]


def resolved(value: T | None) -> T:
    """A value that `resolve.py` has filled in; a None here is a bug of ours, not of the user."""
    if value is None:
        raise TypeError("a configuration was used before it was resolved")
    return value


@dataclasses.dataclass(frozen=True)
class Model:
    variant: Annotated[str, words("auto", *VARIANTS, *SWINS)] = (
        "ti"  # auto (scaling.py) | mu | nano | ti | s | b | l | h: width, depth and heads; swinv2_t | swinv2_s | swinv2_b | swinv2_l | swinv2_h
    )
    width: Width | None = None  # overrides the variant's
    depth: Depth | None = None
    heads: Heads | None = None
    patch: Side | None = None  # pixels; None = 16, of a Swin 4
    image_size: Side | tuple[Side, Side] | None = (
        None  # side, or in a config file (height, width), in pixels; None = 224, of a Swin 192
    )
    mlp_ratio: Annotated[float, Range(0, 64, above=True)] = 4.0
    positions: Annotated[str, words("learned", "sincos_2d", "sincos_1d", "none")] = "learned"
    relative_bias: Annotated[str, words("none", "shared", "per_block")] = "none"
    cls: bool = True
    layer_scale: Annotated[float, Range(0, 100, above=True)] | None = (
        None  # initial value; None = no LayerScale
    )
    qkv_bias: Annotated[str, words("qkv", "qv", "none")] = "qkv"
    window: Side = 12  # Swin: side of a window in tokens; where the map is smaller, the map
    pretrained_windows: tuple[Side, ...] | None = (
        None  # Swin: windows that the position bias was learnt in; None = window
    )
    drop_path: ShareBelowOne = 0.0
    norm_eps: ShareAboveZero | None = None  # None = 1e-6, of a Swin 1e-5
    pre_norm: bool = False  # a LayerNorm before block 0 (CLIP)
    activation: Annotated[str, words("gelu", "quick_gelu")] = "gelu"  # gelu | quick_gelu (CLIP)
    patch_bias: bool = True  # of the patch projection
    remat: Annotated[str, words("none", "block", "dots")] = "none"
    attention: Annotated[str, words("auto", "xla", "cudnn")] = "auto"
    dtype: Annotated[str, words("auto", "float32", "bfloat16")] = (
        "auto"  # auto (bfloat16 on an accelerator, float32 on CPU) | float32 | bfloat16
    )


@dataclasses.dataclass(frozen=True)
class Data:
    source: Name = "digits"  # init (that of the run config.init) | digits | photos | synthetic[:N[:SIZE]] | arrays:FILE.npz | folder:PATH | tfds:NAME | concat:A+B
    split: Name = "train"
    test_split: Name = "test"
    data_dir: Text | None = None  # where TFDS data sets lie
    batch_size: Count = 64  # over all devices and hosts
    fit_batch: bool = False  # a batch larger than the data is cut to it
    on_bad_image: Annotated[str, words("error", "skip")] = "error"
    threads: Annotated[int, Range(0, 1024)] = 0  # decoding threads; 0 = one a core
    prefetch: Annotated[int, Range(0, 1024)] = 2  # batches made ahead
    crops_per_picture: Annotated[int, Range(1, 10**6)] = 64  # photos: virtual crops of each photograph
    mean: Colour = (0.485, 0.456, 0.406)  # per channel, of values in [0, 1]
    std: Spread = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Augment:
    crop: Crop = "random_resized"  # random_resized | centre_square | resize_centre | squash | none
    scale: Annotated[tuple[ShareAboveZero, ShareAboveZero], Values(rising=True)] = (
        0.2,
        1.0,
    )  # share of the area
    ratio: Annotated[tuple[Ratio, Ratio], Values(rising=True)] = (3 / 4, 4 / 3)  # width / height
    resample: Annotated[str, words("bicubic", "bilinear", "lanczos")] = (
        "bicubic"  # bicubic | bilinear | lanczos; antialiased
    )
    eval_crop: Crop = "centre_square"  # of evaluation: as crop; random_resized is fixed by the index
    flip: bool = True
    jitter: Share = 0.0  # brightness, contrast and saturation, each x U(1 - j, 1 + j)


@dataclasses.dataclass(frozen=True)
class Optim:
    name: Annotated[str, words("adamw", "lars")] = "adamw"
    lr: Rate | None = None  # peak; None = base_lr * batch_size / lr_batch
    base_lr: Rate = 1.5e-4
    lr_batch: Count = 256
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.999
    eps: ShareAboveZero = 1e-8
    momentum: ShareBelowOne = 0.9  # lars
    layer_decay: ShareAboveZero = (
        1.0  # learning rate of a layer over that of the next one; 1 = the same for all
    )
    weight_decay: Annotated[float, Range(0, 100)] = 0.05
    clip_norm: Annotated[float, Range(0, 1e9, above=True)] | None = None  # global gradient norm
    accumulation: Count = 1  # parts of a batch worked one after another
    ema: ShareBelowOne = 0.0  # decay of the moving average of the parameters; 0 = none


@dataclasses.dataclass(frozen=True)
class Schedule:
    epochs: Annotated[float, Range(0, 1e6, above=True)] = 10.0
    steps: Count | None = None  # None = epochs * examples / batch_size
    warmup_epochs: Epochs | None = 1.0  # None, or longer than the run = a twentieth of the run
    warmup_steps: CountOrZero | None = None  # None = from warmup_epochs
    warmup_lr: Rate = 0.0
    min_lr: Rate = 0.0
    cosine_from: Annotated[str, words("warmup", "start")] = (
        "warmup"  # warmup (MAE) | start (timm: the warm-up replaces the cosine's beginning)
    )
    per_epoch: bool = False  # the rate changes once an epoch (timm) instead of every step
    cooldown_epochs: Epochs = 0.0  # at min_lr, after the cosine


@dataclasses.dataclass(frozen=True)
class Mesh:
    data: Annotated[int, Range(-1, 2**20)] = -1  # -1 = all devices that the other axes leave
    fsdp: Annotated[int, Range(1, 2**20)] = 1
    tensor: Annotated[int, Range(1, 2**20)] = 1
    explain: bool = False  # prints where every parameter lies


@dataclasses.dataclass(frozen=True)
class Eval:
    every_steps: Count | None = None  # None = ten times a run
    batch_size: Count | None = None  # None = data.batch_size
    heldout_examples: CountOrZero = 2048  # at most so many of the test split, spread over it; 0 = none
    baselines: bool = True  # at the start and the end: what the result is to be compared with
    attention_images: CountOrZero = 0  # held-out images whose attention is analysed; 0 = none
    knn: bool = True
    knn_k: Annotated[tuple[Neighbours, ...], Values(different=True)] | Neighbours = (
        20,
    )  # numbers of neighbours; the first is that of eval/knn_top1
    knn_temperature: Annotated[float, Range(1e-3, 100)] = 0.07
    knn_pool: Annotated[str, words("mean", "cls")] = "mean"  # mean (patch tokens) | cls
    knn_layer: Block = -1  # -1 = after the final norm; else the output of that block
    knn_examples: Count | None = 20000  # at most so many of the train split, spread over it; None = all


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every_steps: Count | None = None  # None = twenty times a run
    keep_last: Count = 2
    keep_every: CountOrZero = 0  # steps; 0 = none
    best_metric: Text | None = None


@dataclasses.dataclass(frozen=True)
class Surgery:
    """What is done to the encoder of `init` before a run starts from it (docs/papers/dark_secrets.md 2.6)."""

    mode: Annotated[str, words("none", "reinit", "truncate", "shuffle")] = (
        "none"  # none | reinit (of the last blocks) | truncate (they are taken away) | shuffle (of the longest stage)
    )
    blocks: Annotated[int, Range(0, 256)] = 0  # how many are the last; not of shuffle
    seed: Seed = 0  # of shuffle


@dataclasses.dataclass(frozen=True)
class Log:
    every_steps: Count | None = None  # None = fifty times a run
    tensorboard: bool = True  # event files in <workdir>/tensorboard
    wandb: Text = ""  # project at Weights & Biases; empty = off (needs pip install wandb)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. `method` is {"name": ..., and that method's options}; `job` holds the options of a task that trains nothing."""

    task: Annotated[str, words("train", "gallery", "tokenizer", "analyze")] = "train"
    seed: Seed = 0
    method: dict[str, Any] = dataclasses.field(default_factory=dict)
    job: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: Model = Model()
    data: Data = Data()
    augment: Augment = Augment()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    mesh: Mesh = Mesh()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    init: Name | None = (
        None  # where the encoder comes from: a run's directory, a ViT as FILE.safetensors; None = random
    )
    surgery: Surgery = Surgery()
    runs: Text = (
        ""  # of a job that looks at finished runs: their directories, or FILE.safetensors, joined by commas
    )
