"""The token cache: token ids computed once and kept, on a disk or in a bucket, as a directory of shards tokens-*.npy (int16 or
int32 [n, L], in the data set's order) and header.json.

A cache is complete or absent: its shards are written into a directory beside it, which is renamed when all are there. A writer that is
stopped anywhere resumes, and the files are the same. Several hosts may write shards of one cache on a shared disk; one of them calls
`TokenWriter.finish`.
"""

import hashlib
import json
import os
import shutil
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
from mim_jax.storage import (
    atomic_write,
    is_bucket,
    make_directory,
    parse_path,
    remove_temporary_files,
    write_json,
)

HEADER = "header.json"
PLAN = "plan.json"
"""Header of an unfinished cache, beside its shards."""
# What a header must say; `shards` (file to rows and sha256), `dtype` and `tokens` (L) are added by `TokenWriter`.
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
_MAX_NPY_HEADER = 4096
"""Bytes at most that an .npy file has before its values."""
_COPY_OR_MAKE = "copy it again, or make the token cache again."
_HEADER_SHAPE = record(
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
        for field, expected in expect.items():
            if field not in header:
                raise DataError(
                    f"The token cache {folder} does not say its {field}, which this run needs to be "
                    f"{_as_json(expected)}: make the cache again."
                )
            if json_value(header[field]) != json_value(expected):
                raise DataError(
                    f"The token cache {folder} was made for {field} = {_as_json(header[field])}, but this run "
                    f"has {_as_json(expected)}: "
                    "use the cache's setting, or make a cache for this run."
                )
        shards, first_example = [], 0
        for name, entry in sorted(header["shards"].items()):
            path = folder / _checked_name(name, folder)
            shards.append(_open_shard(path, entry, header, verify))
            if verify:
                _check_ids(path, shards[-1], first_example, header["vocabulary"])
            first_example += len(shards[-1])
        return cls(folder, header, shards)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def spec(self) -> ArraySpec:
        """Shape and dtype of the ids of one image."""
        return ArraySpec((int(self._shards[0].shape[1]),), "int32", below=int(self.header["vocabulary"]))

    def __getitem__(self, index: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Rows by example index: integers [B], each 0 to n-1, in any order."""
        examples = np.asarray(index, np.int64)
        if examples.size and not 0 <= examples.min() <= examples.max() < len(self):
            raise DataError(
                f"The token cache {self.path} holds examples 0 to {len(self) - 1}, but {examples.min()} to "
                f"{examples.max()} were asked for: use the source it was made for."
            )
        rows = np.empty((len(examples), self._shards[0].shape[1]), np.int32)
        for row, example in enumerate(examples.tolist()):
            shard = bisect_right(self._ends, example)
            start = int(self._ends[shard - 1]) if shard else 0
            rows[row] = self._shards[shard][example - start]
        return rows


def _read_header(folder: Path) -> dict[str, Any]:
    if not (folder / HEADER).exists():
        what = "has no header.json" if folder.is_dir() else "does not exist"
        raise DataError(
            f"The token cache {folder} {what}: make one with python -m mim_jax.tokenize, or correct "
            "method.tokens."
        )
    try:
        header: dict[str, Any] = read_json(folder / HEADER, _HEADER_SHAPE)
        total = sum(shard["rows"] for shard in header["shards"].values())
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


def _checked_name(name: str, folder: Path) -> str:
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


def _check_ids(path: Path, shard: npt.NDArray[Any], first_example: int, vocabulary: int) -> None:
    """Raises DataError naming the first id that the vocabulary does not have; `first_example`: of the shard."""
    for start in range(0, len(shard), ROWS_AT_ONCE):
        part = shard[start : start + ROWS_AT_ONCE]
        wrong = (part < 0) | (part >= vocabulary)
        if wrong.any():
            row, token = (int(indices[0]) for indices in np.nonzero(wrong))
            raise DataError(
                f"The token file {path} holds the id {part[row, token]} in row {start + row} (example {first_example + start + row}, token"
                f" {token}), but the vocabulary has ids 0 to {vocabulary - 1}: make the token cache again."
            )


def _open_shard(
    path: Path, entry: Mapping[str, Any], header: Mapping[str, Any], verify: bool
) -> npt.NDArray[Any]:
    """A shard, memory-mapped where it lies on a disk; entry: what the header says of it. Raises DataError."""
    try:
        # Its size, before it is read for its checksum.
        check_file(path, entry["rows"] * header["tokens"] * 4 + _MAX_NPY_HEADER)
        if verify and sha256_of(path) != entry["sha256"]:
            raise DataError(
                f"The token file {path} is not what was written (its checksum differs): {_COPY_OR_MAKE}"
            )
        shard = open_npy(path)
    except Unreadable as error:
        problem = "is missing, though its header lists it" if error.absent else f"cannot be read ({error})"
        raise DataError(f"The token file {path} {problem}: {_COPY_OR_MAKE}") from error
    if (
        shard.shape != (entry["rows"], header["tokens"])
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


def json_value(value: object) -> object:
    """As it would come back from JSON: a tuple is a list."""
    return json.loads(_as_json(value))


def _as_json(value: object) -> str:
    return json.dumps(value, default=_number)


def _number(value: object) -> object:
    """For json.dumps: numpy's numbers."""
    if isinstance(value, np.integer | np.floating):
        return value.item()
    raise TypeError(f"a token cache header cannot hold {type(value).__name__}")


class TokenWriter:
    """Writes ids of `header["length"]` examples in shards of `rows_per_shard`.

    Raises DataError: a header field is missing, the cache exists, or the unfinished one beside it has another header.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Mapping[str, object],
        rows_per_shard: int = 2**17,
    ) -> None:
        self.path = parse_path(path, "the token cache")
        missing = [field for field in FIELDS if field not in header]
        if missing:
            raise DataError(
                f"The header of the token cache {self.path} lacks {', '.join(missing)}: give every field of "
                f"{', '.join(FIELDS)}."
            )
        if self._exists():
            raise DataError(f"The token cache {self.path} exists already: remove it or choose another path.")
        self.length, self._rows = int(str(header["length"])), rows_per_shard
        self.dtype = np.dtype(np.int16 if int(str(header["vocabulary"])) <= 2**15 else np.int32)
        self._plan: dict[str, Any] = {**dict(json_value(header)), "rows_per_shard": rows_per_shard}  # type: ignore[call-overload]
        # A bucket has no renames: the shards lie in their place at once, and the header, written last, makes them a cache.
        bucket = is_bucket(self.path)
        self.partial = self.path if bucket else self.path.with_name(f".{self.path.name}.partial")
        self._begin_or_resume()

    @property
    def lock_file(self) -> Path:
        """Beside the cache: who writes it (`storage.Lock`)."""
        return self.path.with_name(f".{self.path.name}.lock.json")

    @property
    def num_shards(self) -> int:
        return -(-self.length // self._rows)

    def rows(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self._rows, min((shard + 1) * self._rows, self.length))

    def missing(self) -> list[int]:
        """Shards that are not written yet."""
        return [shard for shard in range(self.num_shards) if not self._file(shard).exists()]

    def write(self, shard: int, ids: npt.NDArray[Any]) -> None:
        """Writes the ids [rows, L] of a shard, atomically. Raises DataError where they cannot be right."""
        if ids.ndim != 2 or len(ids) != len(self.rows(shard)) or ids.dtype.kind not in "iu" or not ids.size:
            raise DataError(
                f"Shard {shard} of the token cache {self.path} got {ids.dtype} {list(ids.shape)}: give integers"
                f" [{len(self.rows(shard))}, L]."
            )
        if ids.min() < 0 or ids.max() >= self._plan["vocabulary"]:
            raise DataError(
                f"The token cache {self.path} got ids {ids.min()} to {ids.max()}, outside the vocabulary of "
                f"{self._plan['vocabulary']}: check the tokenizer."
            )
        with atomic_write(self._file(shard)) as stream:
            np.save(stream, ids.astype(self.dtype), allow_pickle=False)

    def shard(self, shard: int) -> npt.NDArray[Any]:
        """A shard that is written, memory-mapped where it lies on a disk."""
        path = self._file(shard)
        try:
            return open_npy(path)
        except Unreadable as error:
            raise DataError(
                f"The token file {path} cannot be read ({error}): remove it and start the command again."
            ) from error

    def finish(self) -> None:
        """Writes the header and gives the cache its name. Raises DataError where a shard is missing or of another width."""
        if missing := self.missing():
            raise DataError(
                f"The token cache {self.path} still lacks {len(missing)} of {self.num_shards} shards."
            )
        files = [self._file(shard) for shard in range(self.num_shards)]
        widths = {self.shard(shard).shape[1] for shard in range(self.num_shards)}
        if len(widths) != 1:
            raise DataError(
                f"The shards of the token cache {self.path} have rows of {sorted(widths)} ids: make it again."
            )
        shards = {
            file.name: {"rows": len(self.rows(shard)), "sha256": sha256_of(file)}
            for shard, file in enumerate(files)
        }
        header = {key: value for key, value in self._plan.items() if key != "rows_per_shard"}
        header |= {"dtype": self.dtype.name, "tokens": widths.pop(), "shards": shards}
        write_json(self.partial / HEADER, header)
        remove_temporary_files(self.partial)
        (self.partial / PLAN).unlink()
        if self.partial != self.path:
            os.rename(self.partial, self.path)

    def _exists(self) -> bool:
        if is_bucket(self.path):
            return (self.path / HEADER).exists()
        return os.path.lexists(self.path)

    def _file(self, shard: int) -> Path:
        return self.partial / f"tokens-{shard:05d}.npy"

    def _begin_or_resume(self) -> None:
        """Begins the directory of the unfinished cache, or resumes it."""
        plan = self.partial / PLAN
        if not plan.exists() and not os.path.islink(plan):
            if names := _visible_names(self.partial):
                raise DataError(
                    f"The folder {self.partial} holds files that are not ours ({', '.join(names[:3])}): move them away, or choose"
                    " another path for the token cache."
                )
            make_directory(self.partial, "the token cache")
            write_json(plan, self._plan)
            return
        saved = _read_plan(plan)
        changed = [key for key in {**saved, **self._plan} if saved.get(key) != self._plan.get(key)]
        if changed:
            differences = "; ".join(
                f"{key} was {saved.get(key)}, is {self._plan.get(key)}" for key in changed
            )
            raise DataError(
                f"The unfinished token cache {self.partial} was begun for something else ({differences}): remove it, or choose"
                " another path."
            )


def _visible_names(folder: Path) -> list[str]:
    """Names in a folder, without the temporary files of other hosts that begin the same cache."""
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def _read_plan(plan: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = read_json(plan, mapping())
    except Unreadable as error:
        raise DataError(
            f"The plan {plan} of an unfinished token cache is damaged ({error}): remove {plan.parent}."
        ) from error
    return saved


def write_token_cache(
    path: str | os.PathLike[str], tokens: npt.ArrayLike, header: Mapping[str, object]
) -> None:
    """Writes a cache whose ids [n, L] are all at hand, all or nothing; header: FIELDS.

    Raises DataError: as `TokenWriter`, or the length is not the source's.
    """
    ids = np.asarray(tokens)
    writer = TokenWriter(path, header)
    try:
        if len(ids) != writer.length:
            raise DataError(
                f"The token cache {path} got {len(ids)} rows for a source of length {writer.length}: give "
                "one row for each example."
            )
        for shard in range(writer.num_shards):
            writer.write(shard, ids[writer.rows(shard).start : writer.rows(shard).stop])
        writer.finish()
    finally:
        if writer.partial != writer.path:
            shutil.rmtree(writer.partial, ignore_errors=True)
