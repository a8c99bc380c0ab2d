"""Peak speed of the devices we know, for MFU. A device that is not in the table has no MFU: we make up no peak.

Dense (no structured sparsity) FLOP/s of one jax device, as the makers state them; NVIDIA's data sheets print the number
*with* sparsity for most cards since the A100, which is twice the dense one. `float32` is what XLA does with float32
matrix products by default: TF32 on NVIDIA's tensor cores, one bfloat16 pass on a TPU.
"""

import resource
import sys
from typing import NamedTuple

import jax


class Peak(NamedTuple):
    bfloat16: float
    float32: float | None


T = 1e12
PEAKS: tuple[tuple[str, Peak], ...] = (
    # https://www.nvidia.com/en-us/data-center/dgx-b200/ and the Blackwell data sheet: 4.5 PF sparse a GPU.
    ("NVIDIA B200", Peak(2250 * T, 1100 * T)),
    # H200 data sheet, https://www.nvidia.com/en-us/data-center/h200/: SXM 1979 sparse, NVL 1671 sparse.
    ("NVIDIA H200 NVL", Peak(835.5 * T, 417.5 * T)),
    ("NVIDIA H200", Peak(989.4 * T, 494.7 * T)),
    # H100 data sheet, https://resources.nvidia.com/en-us-tensor-core: SXM 1979, NVL 1671, PCIe 1513 sparse.
    ("NVIDIA H100 PCIe", Peak(756.5 * T, 378 * T)),
    ("NVIDIA H100 NVL", Peak(835.5 * T, 417.5 * T)),
    ("NVIDIA H100", Peak(989.4 * T, 494.7 * T)),  # "NVIDIA H100 80GB HBM3" is the SXM card
    # A100 data sheet, https://www.nvidia.com/en-us/data-center/a100/: PCIe and SXM alike.
    ("NVIDIA A100", Peak(312 * T, 156 * T)),
    # L40S data sheet, https://www.nvidia.com/en-us/data-center/l40s/: 733 sparse; the L40 is half as fast.
    ("NVIDIA L40S", Peak(362 * T, 183 * T)),
    # L4 data sheet, https://www.nvidia.com/en-us/data-center/l4/: 242 sparse, TF32 120 sparse.
    ("NVIDIA L4", Peak(121 * T, 60 * T)),
    # https://cloud.google.com/tpu/docs/v6e, /v5p, /v5e, /v4, /v3, /v2: a chip, which is one jax device from v4 on;
    # of v3 (123) and v2 (46) jax counts the two cores of a chip as devices.
    ("TPU v6 lite", Peak(918 * T, 918 * T)),
    ("TPU v6e", Peak(918 * T, 918 * T)),
    ("TPU v5 lite", Peak(197 * T, 197 * T)),
    ("TPU v5e", Peak(197 * T, 197 * T)),
    ("TPU v5p", Peak(459 * T, 459 * T)),
    ("TPU v5", Peak(459 * T, 459 * T)),
    ("TPU v4", Peak(275 * T, 275 * T)),
    ("TPU v3", Peak(61.5 * T, 61.5 * T)),
    ("TPU v2", Peak(23 * T, 23 * T)),
)
"""Beginning of a device's kind (as jax names it, on a word boundary) -> its peak; the first that fits.

Not here: V100 and older (no bfloat16 units: XLA computes bfloat16 in float32 there), cut-down variants, and
TPU v4i ("TPU v4 lite").
"""

WITHOUT = ("TPU v4 lite", "NVIDIA A100X")
"""Kinds that begin like one of the table and are another chip."""


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Dense peak FLOP/s of one device at "bfloat16" or "float32"; None where it is not known."""
    if device_kind.startswith(WITHOUT):
        return None
    for name, peak in PEAKS:
        if device_kind == name or device_kind.startswith((f"{name} ", f"{name}-")):
            return peak.bfloat16 if dtype == "bfloat16" else peak.float32
    return None


def peak_memory() -> float:
    """Most bytes in use so far on this host's busiest device; where the device does not say (a CPU), of this process."""
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if any(used):
        return float(max(used))
    return float(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    )
