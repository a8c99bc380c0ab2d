"""mim_jax: pre-training vision transformers by recovering what was taken from an image."""

import typing

if typing.TYPE_CHECKING:
    from mim_jax.library import load as load

__all__ = ["load"]


def __getattr__(name: str) -> typing.Any:
    # Not imported above: `import mim_jax` and `import mim_jax.corruptions` stay light.
    if name in __all__:
        from mim_jax import library

        return getattr(library, name)
    raise AttributeError(f"module 'mim_jax' has no attribute {name!r}")
