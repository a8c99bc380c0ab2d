"""The one configuration tree, as frozen dataclasses: every key, its type, its default and what it means.

`None` means "follows from others": `resolve.py` fills it after overrides. The options of a method are a dataclass in
the method's own file; they form the section `method` beside its `name`.
"""

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def resolved(value: T | None) -> T:
    """A value that `resolve.py` has filled in; a None here is a bug of ours, not of the user."""
    if value is None:
        raise TypeError("a configuration was used before it was resolved")
    return value


@dataclasses.dataclass(frozen=True)
class Model:
    variant: str = "ti"  # mu | nano | ti | s | b | l | h: width, depth and heads; swinv2_t | swinv2_s | swinv2_b | swinv2_l | swinv2_h
    width: int | None = None  # overrides the variant's
    depth: int | None = None
    heads: int | None = None
    patch: int | None = None  # pixels; None = 16, of a Swin 4
    image_size: int | tuple[int, int] | None = (
        None  # side, or in a config file (height, width), in pixels; None = 224, of a Swin 192
    )
    mlp_ratio: float = 4.0
    positions: str = "learned"  # learned | sincos_2d | sincos_1d | none
    relative_bias: str = "none"  # none | shared | per_block
    cls: bool = True
    layer_scale: float | None = None  # initial value; None = no LayerScale
    qkv_bias: str = "qkv"  # qkv | qv | none
    window: int = 12  # Swin: side of a window in tokens; where the map is smaller, the map
    pretrained_windows: tuple[int, ...] | None = (
        None  # Swin: windows that the position bias was learnt in; None = window
    )
    drop_path: float = 0.0
    norm_eps: float | None = None  # None = 1e-6, of a Swin 1e-5
    pre_norm: bool = False  # a LayerNorm before block 0 (CLIP)
    activation: str = "gelu"  # gelu | quick_gelu (CLIP)
    patch_bias: bool = True  # of the patch projection
    remat: str = "none"  # none | block | dots
    attention: str = "auto"  # auto | xla | cudnn
    dtype: str = "auto"  # auto (bfloat16 on an accelerator, float32 on CPU) | float32 | bfloat16


@dataclasses.dataclass(frozen=True)
class Data:
    source: str = "digits"  # init (that of the run config.init) | digits | photos | synthetic[:N[:SIZE]] | arrays:FILE.npz | folder:PATH | tfds:NAME | concat:A+B
    split: str = "train"
    test_split: str = "test"
    data_dir: str | None = None  # where TFDS data sets lie
    batch_size: int = 64  # over all devices and hosts
    on_bad_image: str = "error"  # error | skip
    threads: int = 0  # decoding threads; 0 = one a core
    prefetch: int = 2  # batches made ahead
    crops_per_picture: int = 64  # photos: virtual crops of each photograph
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # per channel, of values in [0, 1]
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Augment:
    crop: str = "random_resized"  # random_resized | centre_square | resize_centre | squash | none
    scale: tuple[float, float] = (0.2, 1.0)  # share of the area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    resample: str = "bicubic"  # bicubic | bilinear | lanczos; antialiased
    eval_crop: str = "centre_square"  # of evaluation: as crop; random_resized is fixed by the index
    flip: bool = True
    jitter: float = 0.0  # brightness, contrast and saturation, each x U(1 - j, 1 + j)


@dataclasses.dataclass(frozen=True)
class Optim:
    name: str = "adamw"  # adamw | lars
    lr: float | None = None  # peak; None = base_lr * batch_size / lr_batch
    base_lr: float = 1.5e-4
    lr_batch: int = 256
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9  # lars
    layer_decay: float = 1.0  # learning rate of a layer over that of the next one; 1 = the same for all
    weight_decay: float = 0.05
    clip_norm: float | None = None  # global gradient norm
    accumulation: int = 1  # parts of a batch worked one after another
    ema: float = 0.0  # decay of the moving average of the parameters; 0 = none


@dataclasses.dataclass(frozen=True)
class Schedule:
    epochs: float = 10.0
    steps: int | None = None  # None = epochs * examples / batch_size
    warmup_epochs: float = 1.0
    warmup_steps: int | None = None  # None = from warmup_epochs
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    cosine_from: str = "warmup"  # warmup (MAE) | start (timm: the warm-up replaces the cosine's beginning)
    per_epoch: bool = False  # the rate changes once an epoch (timm) instead of every step
    cooldown_epochs: float = 0.0  # at min_lr, after the cosine


@dataclasses.dataclass(frozen=True)
class Mesh:
    data: int = -1  # -1 = all devices that the other axes leave
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Eval:
    every_steps: int | None = None  # None = ten times a run
    batch_size: int | None = None  # None = data.batch_size
    heldout_examples: int = 2048  # at most so many of the test split, spread over it
    baselines: bool = True  # at the start and the end: what the result is to be compared with
    attention_images: int = 0  # held-out images whose attention is analysed; 0 = none
    knn: bool = True
    knn_k: tuple[int, ...] | int = (20,)  # numbers of neighbours; the first is that of eval/knn_top1
    knn_temperature: float = 0.07
    knn_pool: str = "mean"  # mean (patch tokens) | cls
    knn_layer: int = -1  # -1 = after the final norm; else the output of that block
    knn_examples: int | None = 20000  # at most so many of the train split, spread over it; None = all


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every_steps: int | None = None  # None = twenty times a run
    keep_last: int = 2
    keep_every: int = 0  # steps; 0 = none
    best_metric: str | None = None


@dataclasses.dataclass(frozen=True)
class Surgery:
    """What is done to the encoder of `init` before a run starts from it (spec dark_secrets.md 2.6)."""

    mode: str = "none"  # none | reinit (of the last blocks) | truncate (they are taken away) | shuffle (of the longest stage)
    blocks: int = 0  # how many are the last; not of shuffle
    seed: int = 0  # of shuffle


@dataclasses.dataclass(frozen=True)
class Log:
    every_steps: int | None = None  # None = fifty times a run
    tensorboard: bool = True  # event files in <workdir>/tensorboard
    wandb: str = ""  # project at Weights & Biases; empty = off (needs pip install wandb)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. `method` is {"name": ..., and that method's options}; `job` holds the options of a task that trains nothing."""

    task: str = "pretrain"  # pretrain | gallery | tokenizer
    seed: int = 0
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
    init: str | None = (
        None  # where the encoder comes from: a run's directory, a ViT as FILE.safetensors; None = random
    )
    surgery: Surgery = Surgery()
    runs: str = (
        ""  # of a job that looks at finished runs: their directories, or FILE.safetensors, joined by commas
    )
