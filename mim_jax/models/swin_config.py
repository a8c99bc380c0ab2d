"""The sizes of a Swin, and what follows from them (docs/papers/dark_secrets.md 1.2)."""

import dataclasses
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from mim_jax.models.geometry import AttentionGeometry
from mim_jax.models.windows import WindowPlan, attention_geometry, plan_windows

_DEEP = (2, 2, 18, 2)

# What a name of a size stands for. "mu" is for tests, "nano" for CPUs (32 px images in patches of 2 or 4 px).
SWIN_VARIANTS: dict[str, dict[str, Any]] = {
    "swinv2_t": dict(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "swinv2_s": dict(width=96, depths=_DEEP, heads=(3, 6, 12, 24)),
    "swinv2_b": dict(width=128, depths=_DEEP, heads=(4, 8, 16, 32)),
    "swinv2_l": dict(width=192, depths=_DEEP, heads=(6, 12, 24, 48)),
    "swinv2_h": dict(width=352, depths=_DEEP, heads=(11, 22, 44, 88)),
    "swinv2_mu": dict(width=16, depths=(2, 2), heads=(2, 4)),
    "swinv2_nano": dict(width=48, depths=(2, 2), heads=(3, 6)),
}


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Hyper-parameters of a Swin; per stage: depths, heads, windows (in tokens), pretrained_windows, use_shift.

    Raises:
        ValueError: where these do not fit together.
    """

    image_size: tuple[int, int] = (192, 192)
    patch: int = 4
    width: int = 96  # of the first stage
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    windows: tuple[int, ...] = (12, 12, 12, 6)  # a map no larger than its window is one window, never shifted
    pretrained_windows: tuple[int, ...] | None = (
        None  # the position bias' own scale; None or 0 = the windows themselves
    )
    use_shift: tuple[bool, ...] | None = None  # None = in all stages; odd blocks of a stage shift
    mlp_ratio: float = 4.0
    drop_path: float = 0.0  # of the last block; linear over all blocks from 0
    norm_eps: float = 1e-5
    version: int = 2  # 1 = pre-norm, bias table, scaled dot product
    remat: str = "none"  # none | block (keep block inputs only) | dots (keep matmul results)
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"the version of a Swin is 1 or 2, not {self.version!r}")
        for name in ("heads", "windows", "pretrained_windows", "use_shift"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.depths):
                raise ValueError(
                    f"{name}={given} has {len(given)} entries for {len(self.depths)} stages (depths={self.depths})"
                )
        if min(*self.depths, *self.windows) < 1:
            raise ValueError(f"depths={self.depths} and windows={self.windows} must be at least 1")
        for stage, heads in enumerate(self.heads):
            if self.widths[stage] % heads:
                raise ValueError(
                    f"{heads} heads do not divide the width of {self.widths[stage]} of stage {stage}"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, the first stage's map."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def prefix(self) -> int:
        """0: no CLS."""
        return 0

    @property
    def num_slots(self) -> int:
        """Tokens of the first stage."""
        return self.num_patches

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Linear over all blocks: 0 for the first, `drop_path` for the last."""
        return tuple(float(rate) for rate in np.linspace(0.0, self.drop_path, self.depth))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every stage."""
        return tuple(self.width * 2**stage for stage in range(len(self.depths)))

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return self.widths[-1]

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every stage's map; merging rounds up."""
        rows, columns = self.grid
        return tuple((-(-rows // 2**stage), -(-columns // 2**stage)) for stage in range(len(self.depths)))

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the last stage's map."""
        return self.maps[-1]

    @property
    def stride(self) -> int:
        """Pixels along a side of a cell of the last stage."""
        return self.patch * 2 ** (len(self.depths) - 1)

    @property
    def stage_of(self) -> tuple[int, ...]:
        """The stage of every block."""
        return tuple(stage for stage, depth in enumerate(self.depths) for _ in range(depth))

    @property
    def plans(self) -> tuple[WindowPlan, ...]:
        """How every block cuts its map; every second one of a stage is shifted, where the stage shifts at all."""
        shifts = self.use_shift or (True,) * len(self.depths)
        return tuple(
            plan_windows(self.maps[stage], self.windows[stage], shifts[stage] and bool(index % 2))
            for stage, depth in enumerate(self.depths)
            for index in range(depth)
        )

    @property
    def summary(self) -> str:
        """One line for people."""
        blocks, windows = ("-".join(map(str, x)) for x in (self.depths, self.windows))
        return f"Swin V{self.version} width {self.width}, depths {blocks}, windows {windows}"

    @property
    def geometry(self) -> tuple[AttentionGeometry, ...]:
        """Where the tokens of every block's attention lie; padding has the label -1 (`windows.attention_geometry`)."""
        return tuple(
            attention_geometry(plan, float(self.patch * 2**stage))
            for plan, stage in zip(self.plans, self.stage_of, strict=True)
        )
