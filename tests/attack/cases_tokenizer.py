"""Tokenizer files: what their metadata say of the teacher, and centroids that cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack import base, odd
from tests.attack.case import Act, Case, canary, tokenize, train

AREA = "tokenizer"
METADATA = "mim_jax_tokenizer"


def _used(spoil: Callable[[Path], object]) -> Callable[[Path], Act]:
    """A run whose tokenizer, which runs in every step, was spoilt."""

    def build(tmp: Path) -> Act:
        file = base.copy(base.TOKENIZER, tmp / base.TOKENIZER)
        spoil(file)
        return train(tmp / "run", f"method.weights={file}")

    return build


def rewritten(file: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> None:
    """The file with other tensors or metadata, in place."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(file, framework="np") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = dict(opened.metadata() or {})
    change(tensors, metadata)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file, metadata)


def _facts(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Act]:
    def edit(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        facts = json.loads(metadata[METADATA])
        change(facts)
        metadata[METADATA] = json.dumps(facts)

    return _used(lambda file: rewritten(file, edit))


def _says(text: str) -> Callable[[Path], Act]:
    return _used(lambda file: rewritten(file, lambda tensors, metadata: metadata.update({METADATA: text})))


def _teacher(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda facts: facts["teacher"].update(values)


def _centroids(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Act]:
    return _used(
        lambda file: rewritten(
            file, lambda tensors, _: tensors.update(centroids=change(tensors["centroids"].copy()))
        )
    )


def _one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(centroids: np.ndarray) -> np.ndarray:
        centroids[3, 2] = value
        return centroids

    return change


FACTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no name": lambda facts: facts.pop("name"),
    "a name that is a number": lambda facts: facts.update(name=1),
    "another name": lambda facts: facts.update(name="kclip"),
    "no teacher": lambda facts: facts.pop("teacher"),
    "a teacher that is null": lambda facts: facts.update(teacher=None),
    "a teacher that is a list": lambda facts: facts.update(teacher=[1]),
    "no kind": lambda facts: facts["teacher"].pop("kind"),
    "an unknown kind": _teacher(kind="../pixels"),
    "a kind without its weights": _teacher(kind="vit"),
    "a kind that is an object": _teacher(kind={}),
    "no image size": lambda facts: facts["teacher"].pop("image_size"),
    "an image size that is null": _teacher(image_size=None),
    "an image size of one": _teacher(image_size=[8]),
    "an image size of texts": _teacher(image_size=["8", "eight"]),
    "an image size of 0": _teacher(image_size=[0, 0]),
    "a negative image size": _teacher(image_size=[-8, -8]),
    "an image size of 10**9": _teacher(image_size=[10**9, 10**9]),
    "an image size that is no multiple": _teacher(image_size=[9, 9]),
    "no patch": lambda facts: facts["teacher"].pop("patch"),
    "a patch of 0": _teacher(patch=0),
    "a patch that is a text": _teacher(patch="two"),
    "a patch larger than the image": _teacher(patch=64),
    "another patch": _teacher(patch=4),
    "no mean": lambda facts: facts["teacher"].pop("mean"),
    "a mean of one": _teacher(mean=[0.5]),
    "a mean of texts": _teacher(mean=["a", "b", "c"]),
    "a mean that is NaN": _teacher(mean=[float("nan")] * 3),
    "a mean that is infinite": _teacher(mean=[float("inf")] * 3),
    "a standard deviation of 0": _teacher(std=[0.0, 0.0, 0.0]),
    "a negative standard deviation": _teacher(std=[-1.0, 1.0, 1.0]),
    "a standard deviation that is an object": _teacher(std={"r": 1}),
    "a vit that is a text": _teacher(kind="vit", vit="b"),
    "a vit with an unknown key": _teacher(kind="vit", vit={"wdith": 3}),
    "a vit of negative depth": _teacher(kind="vit", vit={"patch": 2, "width": 32, "depth": -1, "heads": 2}),
    "a vit of 10**9 blocks": _teacher(kind="vit", vit={"patch": 2, "width": 32, "depth": 10**9, "heads": 2}),
    "a resnet of texts": _teacher(kind="clip_resnet", layers=["a"], width=1),
    "a resnet of negative width": _teacher(kind="clip_resnet", layers=[1, 1, 1, 1], width=-4),
}

CENTROIDS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "with NaN": (_one(float("nan")), "centroids.*finite"),
    "with infinity": (_one(float("inf")), "centroids.*finite"),
    "with negative infinity": (_one(float("-inf")), "centroids.*finite"),
    "of integers": (lambda centroids: (9 * centroids).astype(np.int32), "centroids.*int32"),
    "of booleans": (lambda centroids: centroids > 0, "centroids.*bool"),
    "of doubles beyond float32": (lambda centroids: centroids.astype(np.float64) + 1e300, "centroids"),
    "that are all 0": (np.zeros_like, "centroids"),
    "that are all one value": (np.ones_like, "centroids"),
    "that are all the same row": (lambda centroids: np.tile(centroids[:1], (len(centroids), 1)), "centroids"),
    "of another width": (lambda centroids: centroids[:, :-1], "centroids"),
    "of one dimension": (lambda centroids: centroids[:, 0], "centroids"),
    "of three dimensions": (lambda centroids: centroids[None], "centroids"),
    "that are none": (lambda centroids: centroids[:0], "centroids"),
    "that are a number": (lambda centroids: centroids[0, 0], "centroids"),
    "of another number": (lambda centroids: centroids[:-1], "15"),
}

CASES = [
    Case(AREA, "as made", _used(lambda file: None), accepted=True),
    *(Case(AREA, f"metadata: {name}", _says(text), base.TOKENIZER) for name, text in odd.TEXTS.items()),
    *(Case(AREA, f"metadata with {name}", _facts(change), base.TOKENIZER) for name, change in FACTS.items()),
    *(Case(AREA, f"centroids {name}", _centroids(change), says) for name, (change, says) in CENTROIDS.items()),
    Case(AREA, "no centroids", _used(lambda file: rewritten(file, lambda tensors, _: [tensors.pop("centroids"), tensors.update(a=np.ones(3))])), base.TOKENIZER),
    Case(AREA, "a tensor beside them that is not ours", _used(lambda file: rewritten(file, lambda tensors, _: tensors.update(extra=np.ones(3)))), "extra"),
    *(Case(AREA, f"the file: {name}", _used(put), base.TOKENIZER, seconds=8.0) for name, put in odd.KINDS.items()),
    Case(AREA, "a pickle renamed", _used(lambda file: file.write_bytes(canary(file.parent))), base.TOKENIZER),
    Case(AREA, "cut short", _used(lambda file: file.write_bytes(file.read_bytes()[:-9])), base.TOKENIZER),
    Case(AREA, "tokenize with centroids of NaN", lambda tmp: [rewritten(base.copy(base.TOKENIZER, tmp / "t.safetensors"), lambda tensors, _: tensors.update(centroids=np.full_like(tensors["centroids"], np.nan))), tokenize(base.tokens_arguments(tmp / "t.safetensors", tmp / "tokens"))][1], "centroids.*finite"),
    Case(AREA, "vqkd of a k-means", lambda tmp: train(tmp / "run", f"method.weights={base.copy(base.TOKENIZER, tmp / 't.safetensors')}", "method.tokenizer=vqkd")),
    Case(AREA, "dalle of a k-means", lambda tmp: train(tmp / "run", f"method.weights={base.copy(base.TOKENIZER, tmp / 't.safetensors')}", "method.tokenizer=dalle")),
]  # fmt: skip
