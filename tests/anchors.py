"""The closed-form inputs of Beyond Masking's numeric anchors (docs/papers/beyond_masking.md A12) and the two precisions to check in."""

from typing import Any

import jax
import numpy as np
import pytest

PRECISIONS = pytest.mark.parametrize("dtype", ["float64", "float32"])
TORCH = "torch is the second oracle and is not installed here"


def precision(dtype: str) -> Any:
    """The context in which JAX computes in `dtype`; products are full float32 ones on the CPU, where tests run."""
    return jax.enable_x64(dtype == "float64")


def tolerance(dtype: str, single: float, double: float = 1e-8) -> float:
    """Printed digits (8 decimals) in float64, the tolerance in float32."""
    return double if dtype == "float64" else single


def image(size: int, dtype: str = "float64") -> np.ndarray:
    """I_Q: [2, Q, Q, 3], taken as the normalised image."""
    b, y, x, c = np.ogrid[:2, :size, :size, :3]
    return (np.sin(0.05 * (x + 1) * (c + 1)) * np.cos(0.03 * (y + 1) * (b + 1)) + 0.1 * c).astype(dtype)


def prediction(dtype: str = "float64") -> np.ndarray:
    """PRED: [2, 196, 768]."""
    b, n, k = np.ogrid[:2, :196, :768]
    return (0.5 * np.sin(0.1 * n + 0.013 * k + b)).astype(dtype)


def noise() -> np.ndarray:
    """[2, 196]; the 49 patches of smallest noise are kept."""
    b, n = np.ogrid[:2, :196]
    return ((37 * n + 11 * b) % 196) / 196


def photographs(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """float32 noise [B, H, W, 3]: every pixel differs, so that a wrong index shows."""
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def on_eight_devices(function: Any, *arrays: Any) -> tuple[jax.Array, list[str]]:
    """Runs a jitted function with its arguments split along their first axis over all eight devices.

    Returns:
        its output, and the kinds of communication in the compiled program.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    parts = [jax.device_put(array, spec) for array in arrays]
    compiled = function.lower(*parts).compile()
    text = compiled.as_text()
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    out = compiled(*parts)
    assert out.sharding.num_devices == 8
    return out, [name for name in names if f"{name}(" in text or f"{name}-start(" in text]
