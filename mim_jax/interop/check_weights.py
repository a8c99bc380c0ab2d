"""Whether weights can be those of a trained network: floating-point, finite, and not all one value."""

from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np

from mim_jax.interop.errors import WeightsError

SHOWN = 3
"""Parameters of a kind that an error names."""


def refuse_untrained_weights(flat: Mapping[str, np.ndarray], what: str) -> None:
    """Raises WeightsError, naming the parameters, for weights that no trained network has.

    Args:
        flat: our names, joined by "/" or ".", to arrays in our layout.
        what: names the weights in the error, e.g. the file.
    """
    values = {name: np.asarray(value) for name, value in flat.items()}
    integers = [f"{name} ({value.dtype})" for name, value in values.items() if not _is_floating(value)]
    floats = {name: value for name, value in values.items() if _is_floating(value)}
    infinite = [f"{name} ({fault})" for name, value in floats.items() if (fault := _not_finite(value))]
    broken = {name.rpartition(" (")[0] for name in infinite}
    # Zero biases, tables and CLS tokens are how some begin; a kernel of one value has never been trained.
    constant = [
        f"{name} (all {value.flat[0]:g})"
        for name, value in floats.items()
        if name not in broken and name.endswith("kernel") and value.size > 1 and _is_one_value(value)
    ]
    faults = {"no floating-point numbers": integers, "not finite": infinite, "of one value": constant}
    messages = [f"{some(names)} {fault}" for fault, names in faults.items() if names]
    if messages:
        raise WeightsError(f"the weights of {what} cannot be used: {'; '.join(messages)}")


def _is_floating(value: np.ndarray) -> bool:
    return value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16


def _not_finite(value: np.ndarray) -> str:
    """What it holds that float32 cannot; empty where it is finite."""
    with np.errstate(over="ignore"):
        single = value.astype(np.float32)
    if np.isfinite(single).all():
        return ""
    if np.isnan(single).any():
        return f"NaN in {np.isnan(single).sum()} of {value.size}"
    beyond = "" if not np.isfinite(value).all() else ", beyond float32"
    return f"infinite in {np.isinf(single).sum()} of {value.size}{beyond}"


def _is_one_value(value: np.ndarray) -> bool:
    return bool((value == value.flat[0]).all())


def some(names: Iterable[str]) -> str:
    """'a, b, c and 12 more are'."""
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return f"{', '.join(listed[:SHOWN])}{more} {'is' if len(listed) == 1 else 'are'}"
