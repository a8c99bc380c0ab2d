"""What follows from a user's own images where a configuration leaves it open, and where one made for many images meets few."""

import dataclasses

from mim_jax.config.schema import Config, Mesh, Model, resolved

AUTO = "auto"
SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
"""Sides that images are brought to, pixels."""
MOST_ON_A_CPU = 64
LARGE = 200_000
"""Images from which on an accelerator trains a ViT-S."""
WARMUP_SHARE = 0.05
"""Of the steps of a run, where no warm-up is set, or one that is longer than the run."""


def network_for(model: Model, *, num_examples: int, image_side: int | None, platform: str) -> Model:
    """variant=auto: nano on a CPU, else ti or, of many images, s; and an image size and patch that fit the pictures.

    image_side: typical shorter side of the pictures, pixels; None = as large as the machine allows.
    """
    if model.variant != AUTO:
        return model
    cpu = platform == "cpu"
    most = MOST_ON_A_CPU if cpu else SIDES[-1]
    size = model.image_size
    if size is None:
        size = max([side for side in SIDES if side <= min(image_side or most, most)], default=SIDES[0])
    side = size if isinstance(size, int) else min(size)
    patch = side // 8 if side <= 128 and side % 8 == 0 else 16
    return dataclasses.replace(
        model,
        variant="nano" if cpu else "ti" if num_examples < LARGE else "s",
        image_size=size,
        patch=patch if model.patch is None else model.patch,
    )


def batch_for(config: Config, mesh: Mesh, num_examples: int) -> int:
    """The batch; with data.fit_batch no larger than the data, and still to be split over parts and devices."""
    pieces, batch = mesh.data * mesh.fsdp * config.optim.accumulation, config.data.batch_size
    if not config.data.fit_batch or batch <= num_examples:
        return batch
    return max(1, num_examples // pieces) * pieces


def warmup_for(config: Config, steps: int, per_epoch: float) -> int:
    """Steps of the warm-up; one in epochs that is longer than the run, or none, is a twentieth of the run."""
    s = config.schedule
    if s.warmup_steps is not None:
        return s.warmup_steps
    asked = None if s.warmup_epochs is None else round(s.warmup_epochs * per_epoch)
    return round(WARMUP_SHARE * steps) if asked is None or asked > steps else asked


def chosen(asked: Config, made: Config, num_examples: int, image_side: int | None) -> list[str]:
    """Lines that say what `resolve` made of a configuration beyond what it says."""
    lines, m, s = [], made.model, made.schedule
    if asked.model.variant == AUTO:
        side = f" of about {image_side} px" if image_side else ""
        size = m.image_size if isinstance(m.image_size, int) else " x ".join(map(str, resolved(m.image_size)))
        lines.append(
            f"model.variant={m.variant} at {size} px, patch {m.patch}, for {num_examples:,} images{side}"
        )
    if asked.data.batch_size != made.data.batch_size:
        lines.append(
            f"data.batch_size={made.data.batch_size} instead of {asked.data.batch_size}: there are {num_examples:,} images"
        )
    if asked.schedule.warmup_steps is None:
        wanted, per_epoch = asked.schedule.warmup_epochs, num_examples / made.data.batch_size
        if wanted is None:
            lines.append(f"a warm-up of {s.warmup_steps} steps, a twentieth of the run")
        elif round(wanted * per_epoch) > resolved(s.steps):
            lines.append(
                f"a warm-up of {s.warmup_steps} steps, a twentieth of the run: schedule.warmup_epochs={wanted:g} is longer than it"
            )
    return lines
