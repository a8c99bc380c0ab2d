"""Token ids computed once and kept, on a disk or in a bucket: a directory of tokens-*.npy (int16 or int32 [n, L], in source order) and
header.json."""

import hashlib
import io
import json
import os
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from etils.epath import Path

from mim_jax.data.errors import DataError
from mim_jax.storage import is_bucket, located

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
        """Opens a cache for a run that expects these header fields. `verify` reads every shard once and
        compares its checksum.

        Raises DataError: a missing cache, the first header field that differs, a shard that is missing or not
        what was written.
        """
        folder = located(path, "config.method.tokens")
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
        return cls(folder, header, shards)

    def __len__(self) -> int:
        return int(self._ends[-1])

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
    if not (folder / HEADER).is_file():
        what = "has no header.json" if folder.is_dir() else "does not exist"
        raise DataError(
            f"The token cache {folder} {what}: make one with python -m mim_jax.tokenize, or correct "
            "method.tokens."
        )
    try:
        header = json.loads((folder / HEADER).read_text())
    except ValueError as error:
        raise DataError(
            f"The header {folder / HEADER} is not JSON ({error}): make the token cache again."
        ) from error
    if not isinstance(header, dict) or not isinstance(header.get("shards"), dict) or not header["shards"]:
        raise DataError(f"The header {folder / HEADER} lists no shards: make the token cache again.")
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


def load_ids(path: Path) -> npt.NDArray[Any]:
    """The ids of a shard, memory-mapped where it lies on a disk, read into memory from a bucket."""
    ids: npt.NDArray[Any]
    if is_bucket(path):
        ids = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    else:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    return ids


def _open_shard(
    path: Path, facts: Mapping[str, Any], header: Mapping[str, Any], verify: bool
) -> npt.NDArray[Any]:
    if not path.is_file():
        raise DataError(
            f"The token file {path} is missing, though its header lists it: copy it again, or make the token "
            "cache again."
        )
    if verify and sha256_of(path) != facts.get("sha256"):
        raise DataError(
            f"The token file {path} is not what was written (its checksum differs): copy it again, or make "
            "the token cache again."
        )
    try:
        shard = load_ids(path)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"The token file {path} cannot be read ({error}): copy it again, or make the token cache again."
        ) from error
    if (
        shard.ndim != 2
        or shard.shape != (facts.get("rows"), header.get("tokens"))
        or shard.dtype.name not in ("int16", "int32")
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
