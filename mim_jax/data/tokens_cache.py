"""Token ids computed once and kept: a directory of tokens-*.npy (int16 or int32 [n, L], in source order) and
header.json."""

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mim_jax.data.errors import DataError

HEADER = "header.json"
# What a header must say; `shards` (file to rows and sha256), `dtype` and `tokens` (L) are added by the
# writer.
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
ROWS_PER_SHARD = 131_072


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
        folder = Path(path).expanduser()
        header = _read_header(folder)
        for field, wanted in expect.items():
            if field not in header:
                raise DataError(
                    f"The token cache {folder} does not say its {field}, which this run needs to be "
                    f"{_show(wanted)}: make the cache again."
                )
            if _plain(header[field]) != _plain(wanted):
                raise DataError(
                    f"The token cache {folder} was made for {field} = {_show(header[field])}, but this run "
                    f"has {_show(wanted)}: "
                    "use the cache's setting, or make a cache for this run."
                )
        shards = [
            _open_shard(folder / name, facts, header, verify)
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


def write_token_cache(
    path: str | os.PathLike[str],
    tokens: npt.ArrayLike | Iterable[npt.NDArray[Any]],
    header: Mapping[str, object],
) -> None:
    """Writes a cache, all or nothing. tokens: integers [n, L], or an iterable of such parts in source order;
    header: FIELDS.

    Raises DataError: a header field is missing, an id is not in the vocabulary, the length is not the
    source's, the path exists.
    """
    target = Path(path).expanduser()
    missing = [field for field in FIELDS if field not in header]
    if missing:
        raise DataError(
            f"The header of the token cache {target} lacks {', '.join(missing)}: give every field of "
            f"{', '.join(FIELDS)}."
        )
    if target.exists():
        raise DataError(f"The token cache {target} exists already: remove it or choose another path.")
    vocabulary = int(header["vocabulary"])  # type: ignore[call-overload]
    dtype = np.dtype(np.int16 if vocabulary <= 2**15 else np.int32)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    temporary.mkdir(parents=True)
    try:
        shards: dict[str, dict[str, object]] = {}
        width = 0
        for number, part in enumerate(_parts(tokens)):
            width = _check_part(part, vocabulary, width, target)
            name = f"tokens-{number:05d}.npy"
            np.save(temporary / name, part.astype(dtype))
            shards[name] = {"rows": len(part), "sha256": _sha256(temporary / name)}
        rows = sum(int(str(facts["rows"])) for facts in shards.values())
        if rows != header["length"]:
            raise DataError(
                f"The token cache {target} got {rows} rows for a source of length {header['length']}: give "
                "one row for each example."
            )
        whole = {**header, "dtype": dtype.name, "tokens": width, "shards": shards}
        (temporary / HEADER).write_text(json.dumps(whole, indent=2, default=_json))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _parts(tokens: Any) -> Iterable[npt.NDArray[Any]]:
    if isinstance(tokens, np.ndarray):
        return (tokens[start : start + ROWS_PER_SHARD] for start in range(0, len(tokens), ROWS_PER_SHARD))
    return (np.asarray(part) for part in tokens)


def _check_part(part: npt.NDArray[Any], vocabulary: int, width: int, target: Path) -> int:
    if part.ndim != 2 or part.dtype.kind not in "iu" or not part.size or (width and part.shape[1] != width):
        raise DataError(
            f"The token cache {target} got {part.dtype} {list(part.shape)}: give integers [n, L] with one L "
            "throughout."
        )
    if part.min() < 0 or part.max() >= vocabulary:
        raise DataError(
            f"The token cache {target} got ids {part.min()} to {part.max()}, outside the vocabulary of "
            f"{vocabulary}: check the tokenizer."
        )
    return int(part.shape[1])


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


def _open_shard(
    path: Path, facts: Mapping[str, Any], header: Mapping[str, Any], verify: bool
) -> npt.NDArray[Any]:
    if not path.is_file():
        raise DataError(
            f"The token file {path} is missing, though its header lists it: copy it again, or make the token "
            "cache again."
        )
    if verify and _sha256(path) != facts.get("sha256"):
        raise DataError(
            f"The token file {path} is not what was written (its checksum differs): copy it again, or make "
            "the token cache again."
        )
    try:
        shard: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
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


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _json(value: object) -> object:
    if isinstance(value, np.integer | np.floating):
        return value.item()
    raise TypeError(f"a token cache header cannot hold {type(value).__name__}")


def _plain(value: object) -> object:
    """As it would come back from JSON: a tuple is a list."""
    return json.loads(json.dumps(value, default=_json))


def _show(value: object) -> str:
    return json.dumps(_plain(value))
