"""Token caches: what header.json says, and shards that are not what they seem."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack import base, odd
from tests.attack.case import CANARY, Act, Case, canary_object, tokenize, train

AREA = "tokens"
SHARD = "tokens-00000.npy"
RUN = ("augment.flip=False",)


def _used(spoil: Callable[[Path], object]) -> Callable[[Path], Act]:
    """A run that learns from a cache that was spoilt."""

    def build(tmp: Path) -> Act:
        cache = base.copy(base.TOKENS, tmp / "tokens")
        spoil(cache)
        return train(tmp / "run", f"method.tokens={cache}", *RUN)

    return build


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Act]:
    def spoil(cache: Path) -> None:
        header = json.loads((cache / "header.json").read_text())
        change(header)
        (cache / "header.json").write_text(json.dumps(header))

    return _used(spoil)


def signed(cache: Path) -> None:
    """The header has the right checksum of the shard as it is now."""
    header = json.loads((cache / "header.json").read_text())
    header["shards"][SHARD]["sha256"] = hashlib.sha256((cache / SHARD).read_bytes()).hexdigest()
    (cache / "header.json").write_text(json.dumps(header))


def _shard(put: Callable[[Path], object]) -> Callable[[Path], Act]:
    def spoil(cache: Path) -> None:
        put(cache / SHARD)
        signed(cache)

    return _used(spoil)


def _ids(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Act]:
    return _shard(lambda path: np.save(path, change(np.array(np.load(path)))))


def _with(value: int, row: int = 700) -> Callable[[Path], Act]:
    """One id is another."""

    def change(ids: np.ndarray) -> np.ndarray:
        ids[row, 3] = value
        return ids

    return _ids(change)


def _claims(shape: str) -> Callable[[Path], object]:
    """An npy file whose head claims a shape that its bytes have not."""

    def put(path: Path) -> None:
        head = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64))

    return put


def _moved(cache: Path, name: str) -> None:
    header = json.loads((cache / "header.json").read_text())
    header["shards"] = {name: next(iter(header["shards"].values()))}
    (cache / "header.json").write_text(json.dumps(header))


def _objects(path: Path) -> None:
    np.save(path, np.array([canary_object(path.parent.parent)], object), allow_pickle=True)


assert CANARY
HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no shards": lambda header: header.pop("shards"),
    "shards that are a list": lambda header: header.update(shards=[SHARD]),
    "no shard": lambda header: header.update(shards={}),
    "a shard that is null": lambda header: header["shards"].update({SHARD: None}),
    "a shard without rows": lambda header: header["shards"][SHARD].pop("rows"),
    "rows that are a text": lambda header: header["shards"][SHARD].update(rows="many"),
    "negative rows": lambda header: header["shards"][SHARD].update(rows=-1),
    "no checksum": lambda header: header["shards"][SHARD].pop("sha256"),
    "a checksum that is a number": lambda header: header["shards"][SHARD].update(sha256=1),
    "no tokens": lambda header: header.pop("tokens"),
    "tokens that are a text": lambda header: header.update(tokens="16"),
    "another vocabulary": lambda header: header.update(vocabulary=17),
    "a vocabulary that is a text": lambda header: header.update(vocabulary="16"),
    "a grid that is a number": lambda header: header.update(grid=4),
    "no view": lambda header: header.pop("view"),
    "another source": lambda header: header.update(source_fingerprint="0"),
    "another length": lambda header: header.update(length=5),
    "a length that is NaN": lambda header: header.update(length=float("nan")),
    "an unknown dtype": lambda header: header.update(dtype="float99"),
}

CASES = [
    Case(AREA, "as made", _used(lambda cache: None), accepted=True),
    *(Case(AREA, f"header.json: {name}", _used(lambda cache, put=put: put(cache / "header.json")), "header.json", seconds=8.0) for name, put in odd.KINDS.items()),
    *(Case(AREA, f"header.json: {name}", _used(lambda cache, text=text: (cache / "header.json").write_text(text)), "header.json") for name, text in odd.TEXTS.items()),
    *(Case(AREA, f"a header with {name}", _header(change)) for name, change in HEADERS.items()),
    *(Case(AREA, f"a shard: {name}", _used(lambda cache, put=put: put(cache / SHARD)), SHARD, seconds=8.0) for name, put in odd.KINDS.items()),
    Case(AREA, "a shard that is missing", _used(lambda cache: (cache / SHARD).unlink()), SHARD),
    Case(AREA, "a shard cut short", _used(lambda cache: (cache / SHARD).write_bytes((cache / SHARD).read_bytes()[:900])), SHARD),
    Case(AREA, "a signed shard cut short", _shard(lambda path: path.write_bytes(path.read_bytes()[:900])), SHARD),
    Case(AREA, "a signed shard of floats", _ids(lambda ids: ids.astype(np.float32)), SHARD),
    Case(AREA, "a signed shard of booleans", _ids(lambda ids: ids > 3), SHARD),
    Case(AREA, "a signed shard of unsigned numbers", _ids(lambda ids: ids.astype(np.uint64)), SHARD),
    Case(AREA, "a signed shard of one dimension", _ids(np.ravel), SHARD),
    Case(AREA, "a signed shard of other rows", _ids(lambda ids: ids[:-1]), SHARD),
    Case(AREA, "a signed shard of objects that are a pickle", _shard(_objects), SHARD),
    Case(AREA, "a signed shard that claims 10**12 rows", _shard(_claims("(1000000000000, 16)")), SHARD),
    Case(AREA, "a signed shard that claims negative rows", _shard(_claims("(-1, 16)")), SHARD),
    Case(AREA, "a signed shard whose head is a program", _shard(_claims("__import__('os').mkdir('canary')")), SHARD),
    Case(AREA, "a signed shard with an id of the vocabulary's size", _with(16), "16.*row 700|row 700.*16"),
    Case(AREA, "a signed shard with an id of -1", _with(-1), "row 700"),
    Case(AREA, "a signed shard with an id of 2**15 - 1", _with(2**15 - 1), "row 700"),
    Case(AREA, "a shard of an absolute name", _used(lambda cache: _moved(cache, "/etc/passwd")), "/etc/passwd"),
    Case(AREA, "a shard above the cache", _used(lambda cache: _moved(cache, f"../tokens/{SHARD}")), "name"),
    Case(AREA, "no cache", lambda tmp: train(tmp / "run", f"method.tokens={tmp / 'no'}", *RUN), "no"),
    Case(AREA, "a file in place of the cache", lambda tmp: train(tmp / "run", f"method.tokens={base.copy(base.TOKENIZER, tmp / 'file')}", *RUN), "file"),
    Case(AREA, "a pipe in place of the cache", lambda tmp: [odd.pipe(tmp / "pipe"), train(tmp / "run", f"method.tokens={tmp / 'pipe'}", *RUN)][1], "pipe", seconds=8.0),
]  # fmt: skip


def _going_on(put: odd.Put) -> Callable[[Path], Act]:
    """python -m mim_jax.tokenize beside an unfinished cache whose plan was spoilt."""

    def build(tmp: Path) -> Act:
        (tmp / ".tokens.partial").mkdir()
        put(tmp / ".tokens.partial" / "plan.json")
        return tokenize(
            base.tokens_arguments(base.copy(base.TOKENIZER, tmp / base.TOKENIZER), tmp / "tokens")
        )

    return build


CASES += [
    Case(AREA, f"plan.json: {name}", _going_on(put), "plan.json|partial", seconds=8.0)
    for name, put in {
        **odd.KINDS, "null": odd.bytes_of("null"), "a list": odd.bytes_of("[1]"), "deep": odd.bytes_of(odd.TEXTS["deep lists"]),
        "an object": odd.bytes_of("{}"),
    }.items()
]  # fmt: skip
