"""Shapes and dtypes at the public borders: every function says them, and the whole suite checks what they say."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError

import mim_jax.corruptions
import mim_jax.models
import mim_jax.targets
from mim_jax.corruptions.masking import masked_first, random_mask, top_up
from mim_jax.methods import terms
from mim_jax.models.layers import gather_tokens
from mim_jax.targets.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise, patchify
from mim_jax.targets.tokens import nearest_centroid

CALLS = {
    "rank": lambda: patchify(jnp.zeros((8, 8, 3)), 4),
    "number of channels": lambda: nearest_centroid(jnp.zeros((2, 3)), jnp.zeros((5, 4))),
    "dtype": lambda: masked_first(jnp.zeros((2, 4), jnp.int32), 1),
    "numpy": lambda: patchify(np.zeros((2, 4, 4, 3)), 2),
    "untyped key": lambda: random_mask(jax.random.PRNGKey(0), 4, 1),
    # These would be broadcast without a word.
    "leading axes": lambda: top_up(jnp.zeros((1, 4), bool), jnp.zeros((2, 4)), 1),
    "batch": lambda: gather_tokens(jnp.zeros((2, 5, 3)), jnp.zeros((1, 4), jnp.int32)),
    "result": lambda: normalise(jnp.zeros((2, 4, 4, 1)), IMAGENET_MEAN, IMAGENET_STD),
    "batch inside of a dictionary": lambda: terms.sum_terms(
        {"loss": (jnp.zeros(4), jnp.zeros(4))}, jnp.ones(1, bool)
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_wrong_array_is_refused(call) -> None:
    with pytest.raises(TypeCheckError):
        call()
    with pytest.raises(TypeCheckError):
        jax.eval_shape(call)


def modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions of a module and methods of its classes, without those of others and private ones."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__ or name.startswith("_"):
            continue
        if inspect.isclass(value):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and (method == "__call__" or not method.startswith("_")):
                    yield f"{module.__name__}.{name}.{method}", function
        elif callable(value):
            yield f"{module.__name__}.{name}", value


def plain(annotation: Any) -> bool:
    """Whether an annotation is missing, or names an array without its shape and dtype."""
    if annotation in (inspect.Parameter.empty, jax.Array, np.ndarray):
        return True
    return any(plain(part) for part in get_args(annotation))


def test_every_public_function_says_shapes_and_dtypes() -> None:
    scope = [*modules(mim_jax.corruptions), *modules(mim_jax.targets), *modules(mim_jax.models), terms]
    functions = dict(function for module in scope for function in public(module))
    assert len(functions) > 100
    wrong = []
    for name, function in functions.items():
        signature = inspect.signature(function)
        annotations = {argument: p.annotation for argument, p in signature.parameters.items()}
        annotations.pop("self", None)
        annotations["return"] = signature.return_annotation
        wrong += [f"{name}: {argument}" for argument, annotation in annotations.items() if plain(annotation)]
    assert wrong == []


def test_plain_arrays_are_found() -> None:
    assert plain(jax.Array) and plain(tuple[int, jax.Array | None]) and plain(dict[str, np.ndarray])
    assert plain(inspect.Parameter.empty) and not plain(Float[Array | np.ndarray, " batch"] | None)
