"""Token ids from a cache, for the images of a run: it must belong to this very run, or is refused.

A cache (python -m mim_jax.tokenize) holds the ids of the training images, and in its folder `held_out` those of the held-out
images: with these, a run that learns from a cache has a held-out loss as any other.
"""

from collections.abc import Callable
from typing import Any

from etils.epath import Path

from mim_jax.data import Dataset, TokenCache
from mim_jax.data.tokens_cache import HEADER
from mim_jax.methods import Method
from mim_jax.storage import parse_path
from mim_jax.tokenizers.tokenizer import opened

HELD_OUT = "held_out"
"""Folder of a cache with the ids of the held-out split: a cache of its own."""

Rows = dict[str, Callable[[Any], Any]]
"""A key of the batch -> function from the numbers of examples to their rows."""


def training_tokens(method: Method, source: Dataset) -> Rows:
    """What the training batches hold beside the images; nothing where the method asks for no tokens.

    Raises:
        DataError: a cache of something else, naming the field that differs.
    """
    if "tokens" not in method.input_spec.extras:
        return {}
    return _tokens(method, _folder(method), source, method.input_spec.crop)


def held_out_tokens(method: Method, source: Dataset) -> Rows:
    """The same for the held-out images of a method with a cache; nothing where the cache has none of these.

    Raises:
        DataError: they are those of other images, or of another view.
    """
    folder = _folder(method) / HELD_OUT
    if not (folder / HEADER).exists():
        return {}
    return _tokens(method, folder, source, method.config.augment.eval_crop)


def _folder(method: Method) -> Path:
    return parse_path(method.config.method["tokens"], "config.method.tokens")


def _tokens(method: Method, folder: Path, source: Dataset, view: str) -> Rows:
    options = method.config.method
    expect = dict(
        tokenizer=options["tokenizer"],
        vocabulary=options["vocabulary"],
        grid=list(method.net.grid),
        view=view,
        length=len(source),
        source_fingerprint=source.fingerprint,
    )
    if options["weights"]:
        expect["tokenizer_fingerprint"] = opened(options["tokenizer"], options["weights"]).fingerprint
    return {"tokens": TokenCache.open(folder, expect=expect).__getitem__}
