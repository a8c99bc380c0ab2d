"""Weights that a run starts from (config.init): safetensors files, runs, and what is neither."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.attack import base, odd
from tests.attack.case import Act, Case, canary, train
from tests.attack.cases_tokenizer import rewritten

AREA = "weights"
FILE = "w.safetensors"
Tensors = dict[str, np.ndarray]
KERNEL, BIAS, TABLE = "blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc1.bias", "pos_embed"


def starts(init: Path | str, tmp: Path, *more: str) -> Act:
    """Trains from weights of the small network."""
    return train(tmp / "new", f"init={init}", *more)


def _file(put: Callable[[Path], object]) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        file = base.copy(base.WEIGHTS, tmp / FILE)
        put(file)
        return starts(file, tmp)

    return build


def _tensors(change: Callable[[Tensors], object]) -> Callable[[Path], Act]:
    return _file(lambda file: rewritten(file, lambda tensors, _: change(tensors)))


def _one(name: str, value: float) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[tensors[name].size // 2] = value

    return change


def _whole(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: make(tensors[name])})


def _renamed(old: str, new: str) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[name.replace(old, new, 1)] = tensors.pop(name)

    return change


def _added(old: str, new: str) -> Callable[[Tensors], object]:
    """Further blocks beside those that are there."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[name.replace(old, new, 1)] = tensors[name]

    return change


def raw(header: object, body: bytes = b"") -> bytes:
    """A safetensors file of this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


CHANGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "NaN in a kernel": (_one(KERNEL, float("nan")), "block_01/mlp/fc1/kernel|blocks.1.mlp.fc1"),
    "infinity in a kernel": (_one(KERNEL, float("inf")), "block_01/mlp/fc1/kernel|blocks.1.mlp.fc1"),
    "NaN in a bias": (_one(BIAS, float("nan")), "fc1"),
    "negative infinity in the positions": (_one(TABLE, float("-inf")), "pos_embed"),
    "doubles beyond float32": (_whole(KERNEL, lambda value: value.astype(np.float64) + 1e300), "fc1"),
    "a kernel of integers": (_whole(KERNEL, lambda value: (100 * value).astype(np.int32)), "fc1"),
    "a kernel of booleans": (_whole(KERNEL, lambda value: value > 0), "fc1"),
    "a bias of integers": (_whole(BIAS, lambda value: (100 * value).astype(np.int64)), "fc1"),
    "a kernel of zeros": (_whole(KERNEL, np.zeros_like), "fc1"),
    "a kernel of one value": (_whole(KERNEL, lambda value: np.full_like(value, 0.3)), "fc1"),
    "a patch projection of zeros": (_whole("patch_embed.proj.weight", np.zeros_like), "patch_embed"),
    "all of one value": (lambda tensors: tensors.update({name: np.ones_like(value) for name, value in tensors.items()}), ""),
    "no kernel": (lambda tensors: tensors.pop(KERNEL), "fc1"),
    "no bias": (lambda tensors: tensors.pop(BIAS), "fc1"),
    "no patch projection": (lambda tensors: tensors.pop("patch_embed.proj.weight"), "no ViT"),
    "no first block": (lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("blocks.0")], ""),
    "a transposed kernel": (_whole(KERNEL, np.transpose), "fc1"),
    "a kernel of three axes": (_whole(KERNEL, lambda value: value[None]), "fc1"),
    "a kernel that is a number": (_whole(KERNEL, lambda value: value[0, 0]), "fc1"),
    "an empty kernel": (_whole(KERNEL, lambda value: value[:0]), "fc1"),
    "a patch that is no square": (_whole("patch_embed.proj.weight", lambda value: value[..., :1]), "patch"),
    "a patch of four colours": (_whole("patch_embed.proj.weight", lambda value: np.concatenate([value, value[:, :1]], 1)), "ViT"),
    "positions of another width": (_whole(TABLE, lambda value: value[..., :-1]), "pos_embed"),
    "positions that are no square": (_whole(TABLE, lambda value: value[:, :-2]), ""),
    "a CLS token of another width": (_whole("cls_token", lambda value: value[..., :-1]), "cls_token"),
    "a block ²": (_renamed("blocks.1.", "blocks.².") , "²"),
    "a further block ²": (_added("blocks.1.", "blocks.²."), "²"),
    "a block 999999999999": (_added("blocks.1.", "blocks.999999999999."), "999999999999"),
    "a block 7 after 1": (_added("blocks.1.", "blocks.7."), "block"),
    "a block -1": (_added("blocks.1.", "blocks.-1."), "-1"),
    "a block 01": (_added("blocks.1.", "blocks.01."), "01"),
    "a block of Arabic digits": (_added("blocks.1.", "blocks.٣."), "٣"),
    "a block with no number": (_added("blocks.1.", "blocks.x."), "x"),
    "a part that ours has not": (lambda tensors: tensors.update({"blocks.0.attn.q_norm.weight": np.ones(32, np.float32)}), "q_norm"),
    "a register token": (lambda tensors: tensors.update(reg_token=np.ones((1, 4, 64), np.float32)), "reg_token"),
    "no tensors": (dict.clear, ""),
}  # fmt: skip

HEADERS: dict[str, bytes] = {
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 999) + b"{}",
    "a header that is a list": raw([]),
    "a header that is null": raw(None),
    "a deep header": raw(b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "a header that is not UTF-8": raw(b'{"\xff": 1}'),
    "a tensor outside the file": raw(_entry("F32", [4], 0, 16), bytes(8)),
    "a tensor of 2**40 values": raw(_entry("F32", [2**40], 0, 2**42), bytes(8)),
    "a shape of 2**62 by 2**62": raw(_entry("F32", [2**62, 2**62], 0, 16), bytes(16)),
    "a negative shape": raw(_entry("F32", [-4], 0, 16), bytes(16)),
    "a tensor of an unknown type": raw(_entry("F99", [4], 0, 16), bytes(16)),
    "a tensor of eight-bit floats": raw(_entry("F8_E4M3", [16], 0, 16), bytes(16)),
    "overlapping tensors": raw({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "y": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, bytes(24)),
}  # fmt: skip

CASES = [
    Case(AREA, "as made", _file(lambda file: None), accepted=True),
    Case(AREA, "in float16", _tensors(lambda tensors: tensors.update({name: value.astype(np.float16) for name, value in tensors.items()})), accepted=True),
    Case(AREA, "with a head of zeros", _tensors(lambda tensors: tensors.update({"head.weight": np.zeros((3, 64), np.float32), "head.bias": np.zeros(3, np.float32)})), accepted=True),
    *(Case(AREA, name, _tensors(change), says) for name, (change, says) in CHANGES.items()),
    *(Case(AREA, name, _file(lambda file, content=content: file.write_bytes(content)), FILE) for name, content in HEADERS.items()),
    *(Case(AREA, f"the file: {name}", _file(put), FILE, seconds=8.0) for name, put in odd.KINDS.items()),
    Case(AREA, "a pickle renamed", _file(lambda file: file.write_bytes(canary(file.parent))), FILE),
    Case(AREA, "cut short", _file(lambda file: file.write_bytes(file.read_bytes()[:-5])), FILE),
    Case(AREA, "an empty file", _file(lambda file: file.write_bytes(b"")), FILE),
    Case(AREA, "a pickle", lambda tmp: [(tmp / "w.pth").write_bytes(canary(tmp)), starts(tmp / "w.pth", tmp)][1], "convert_torch"),
    Case(AREA, "a pickle named .bin", lambda tmp: [(tmp / "w.bin").write_bytes(canary(tmp)), starts(tmp / "w.bin", tmp)][1], "convert_torch"),
    Case(AREA, "another ending", lambda tmp: [(tmp / "w.npz").write_bytes(b"x"), starts(tmp / "w.npz", tmp)][1], "safetensors"),
    Case(AREA, "no file", lambda tmp: starts(tmp / "no.safetensors", tmp), "no.safetensors"),
    Case(AREA, "no directory", lambda tmp: starts(tmp / "no", tmp), "no"),
    Case(AREA, "an empty directory", lambda tmp: [(tmp / "d").mkdir(), starts(tmp / "d", tmp)][1], "no run of ours"),
    Case(AREA, "a pipe without an ending", lambda tmp: [odd.pipe(tmp / "pipe"), starts(tmp / "pipe", tmp)][1], "pipe", seconds=8.0),
    Case(AREA, "heads that do not divide", lambda tmp: starts(base.copy(base.WEIGHTS, tmp / FILE), tmp, "model.heads=7"), "heads"),
    Case(AREA, "a tokenizer", lambda tmp: starts(base.copy(base.TOKENIZER, tmp / FILE), tmp), "no ViT"),
]  # fmt: skip


def _run(spoil: Callable[[Path], object]) -> Callable[[Path], Act]:
    """Starts from a run of ours that was spoilt."""

    def build(tmp: Path) -> Act:
        run = base.copy(base.FINISHED, tmp / "run")
        spoil(run)
        return starts(run, tmp)

    return build


def _no_checkpoints(run: Path) -> None:
    odd.remove(run / "checkpoints")


def _broken_checkpoints(run: Path) -> None:
    for step in (run / "checkpoints").iterdir():
        (step / "manifest.json").write_text("{}")


CASES += [
    Case(AREA, "a run", _run(lambda run: None), accepted=True),
    Case(AREA, "a run without checkpoints", _run(_no_checkpoints), "no checkpoint"),
    Case(AREA, "a run of broken checkpoints", _run(_broken_checkpoints), "is good"),
    Case(AREA, "a run whose checkpoints are a file", _run(lambda run: [_no_checkpoints(run), (run / "checkpoints").write_text("x")]), "checkpoints"),
    Case(AREA, "a run whose checkpoints are a pipe", _run(lambda run: [_no_checkpoints(run), odd.pipe(run / "checkpoints")]), "checkpoints", seconds=8.0),
    *(Case(AREA, f"a run whose config.json is {name}", _run(lambda run, put=put: put(run / "config.json")), "config.json", seconds=8.0) for name, put in odd.KINDS.items()),
    Case(AREA, "a run of another network", _run(lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace('"width": 32', '"width": 64'))), "width|fit"),
]  # fmt: skip
