"""Token ids computed once and kept, on a disk or in a bucket: a directory of tokens-*.npy (int16 or int32 [n, L], in source order) and
header.json."""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from etils.epath import Path

from mim_jax.data.errors import DataError
from mim_jax.data.npy import open_npy
from mim_jax.data.views.base import ArraySpec
from mim_jax.reading import Unreadable, anything, check_file, listed, mapping, read_json, record, text, whole
from mim_jax.storage import parse_path

HEADER = "header.json"
# What a header must say; `shards` (file to rows and sha256), `dtype` and `tokens` (L) are added by `tokens_writer`.
FIELDS = (
    "tokenizer",
    "tokenizer_fingerprint",
    "vocabulary",
    "grid",
    "view",
    "size",
    "source",
    "length",
    "source_fingerprint",
)

ROWS_AT_ONCE = 2**16
"""Whose ids are compared with the vocabulary: a shard may be larger than memory."""
_NPY_HEAD = 4096
"""Bytes at most that an .npy file has before its values."""
_SHAPE = record(
    {
        "shards": mapping(record({"rows": whole(1, 2**40), "sha256": text(64)})),
        "tokens": whole(1, 2**24),
        "vocabulary": whole(1, 2**31 - 1),
        "length": whole(1, 2**40),
        "grid": listed(whole(1, 2**12), shortest=2, longest=2),
        **{
            field: text()
            for field in (
                "dtype",
                "tokenizer",
                "tokenizer_fingerprint",
                "view",
                "source",
                "source_fingerprint",
            )
        },
        "size": anything,
    }
)


class TokenCache:
    """Memory-mapped token ids; cache[index] gives int32 [B, L]. header: what header.json says."""

    def __init__(
        self, path: Path, header: dict[str, Any], shards: list[npt.NDArray[np.integer[Any]]]
    ) -> None:
        self.path, self.header = path, header
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, expect: Mapping[str, object], verify: bool = True
    ) -> "TokenCache":
        """Opens a cache for a run that expects these header fields. `verify` reads every shard once,
        compares its checksum, and looks for ids outside the vocabulary.

        Raises DataError: a missing cache, the first header field that differs, a shard that is missing or not
        what was written.
        """
        folder = parse_path(path, "config.method.tokens")
        header = _read_header(folder)
        for field, wanted in expect.items():
            if field not in header:
                raise DataError(
                    f"The token cache {folder} does not say its {field}, which this run needs to be "
                    f"{_show(wanted)}: make the cache again."
                )
            if plain(header[field]) != plain(wanted):
                raise DataError(
                    f"The token cache {folder} was made for {field} = {_show(header[field])}, but this run "
                    f"has {_show(wanted)}: "
                    "use the cache's setting, or make a cache for this run."
                )
        shards = [
            _open_shard(folder / _plain_name(name, folder), facts, header, verify)
            for name, facts in sorted(header["shards"].items())
        ]
        first = 0
        for name, shard in zip(sorted(header["shards"]), shards, strict=True):
            if verify:
                _check_ids(folder / name, shard, first, header["vocabulary"])
            first += len(shard)
        return cls(folder, header, shards)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def spec(self) -> ArraySpec:
        """Shape and dtype of the ids of one image."""
        return ArraySpec((int(self._shards[0].shape[1]),), "int32", below=int(self.header["vocabulary"]))

    def __getitem__(self, index: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Rows by example index: integers [B], each 0 to n-1, in any order."""
        wanted = np.asarray(index, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise DataError(
                f"The token cache {self.path} holds examples 0 to {len(self) - 1}, but {wanted.min()} to "
                f"{wanted.max()} were asked for: "
                "use the source it was made for."
            )
        rows = np.empty((len(wanted), self._shards[0].shape[1]), np.int32)
        for place, one in enumerate(wanted.tolist()):
            shard = bisect_right(self._ends, one)
            start = int(self._ends[shard - 1]) if shard else 0
            rows[place] = self._shards[shard][one - start]
        return rows


def _read_header(folder: Path) -> dict[str, Any]:
    if not (folder / HEADER).exists():
        what = "has no header.json" if folder.is_dir() else "does not exist"
        raise DataError(
            f"The token cache {folder} {what}: make one with python -m mim_jax.tokenize, or correct "
            "method.tokens."
        )
    try:
        header: dict[str, Any] = read_json(folder / HEADER, _SHAPE)
        total = sum(facts["rows"] for facts in header["shards"].values())
        if not header["shards"]:
            raise Unreadable("it lists no shards")
        if total != header["length"]:
            raise Unreadable(f"its shards have {total} rows, and its length is {header['length']}")
        if header["grid"][0] * header["grid"][1] != header["tokens"]:
            raise Unreadable(f"its rows have {header['tokens']} ids, and its grid is {header['grid']}")
    except Unreadable as error:
        raise DataError(
            f"The header {folder / HEADER} is damaged ({error}): make the token cache again."
        ) from error
    return header


def _plain_name(name: str, folder: Path) -> str:
    """The name of a shard, which must lie in the cache's own folder: a header must not open other files."""
    if (
        name != os.path.basename(name)
        or name in ("", ".", "..")
        or "\0" in name
        or (folder / name).name != name
    ):
        raise DataError(
            f"The header {folder / HEADER} lists {name!r}, which is no name of a file beside it: make the cache again."
        )
    return name


def _check_ids(path: Path, shard: npt.NDArray[Any], first: int, vocabulary: int) -> None:
    """Raises DataError naming the first id that the vocabulary does not have; `first`: example of the shard's first row."""
    for start in range(0, len(shard), ROWS_AT_ONCE):
        part = shard[start : start + ROWS_AT_ONCE]
        wrong = (part < 0) | (part >= vocabulary)
        if wrong.any():
            row, place = (int(found[0]) for found in np.nonzero(wrong))
            raise DataError(
                f"The token file {path} holds the id {part[row, place]} in row {start + row} (example {first + start + row}, token"
                f" {place}), but the vocabulary has ids 0 to {vocabulary - 1}: make the token cache again."
            )


def _open_shard(
    path: Path, facts: Mapping[str, Any], header: Mapping[str, Any], verify: bool
) -> npt.NDArray[Any]:
    try:
        check_file(
            path, facts["rows"] * header["tokens"] * 4 + _NPY_HEAD
        )  # before it is read for its checksum
    except Unreadable as error:
        if not error.absent:
            raise DataError(
                f"The token file {path} cannot be read ({error}): copy it again, or make the token cache again."
            ) from error
        raise DataError(
            f"The token file {path} is missing, though its header lists it: copy it again, or make the token "
            "cache again."
        ) from error
    if verify and sha256_of(path) != facts.get("sha256"):
        raise DataError(
            f"The token file {path} is not what was written (its checksum differs): copy it again, or make "
            "the token cache again."
        )
    try:
        shard = open_npy(path)
    except Unreadable as error:
        raise DataError(
            f"The token file {path} cannot be read ({error}): copy it again, or make the token cache again."
        ) from error
    if (
        shard.ndim != 2
        or shard.shape != (facts.get("rows"), header.get("tokens"))
        or shard.dtype.name not in ("int16", "int32")
        or shard.dtype.name != header["dtype"]
    ):
        raise DataError(
            f"The token file {path} holds {shard.dtype} {list(shard.shape)}, not what its header says: make "
            "the token cache again."
        )
    return shard


def sha256_of(path: Path) -> str:
    """Of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def plain(value: object) -> object:
    """As it would come back from JSON: a tuple is a list."""
    return json.loads(json.dumps(value, default=to_json))


def to_json(value: object) -> object:
    """For json.dumps: numpy's numbers."""
    if isinstance(value, np.integer | np.floating):
        return value.item()
    raise TypeError(f"a token cache header cannot hold {type(value).__name__}")


def _show(value: object) -> str:
    return json.dumps(plain(value))
