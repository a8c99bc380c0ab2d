"""Writing a token cache, shard by shard: a writer that is stopped anywhere goes on where it was, and the files are the same.

Shards are written into a folder beside the cache, which is renamed when all are there: a cache is whole or not there at all.
Several hosts may write shards of one cache on a shared disk; one of them calls `finish`.
"""

import os
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from etils.epath import Path

from mim_jax.data.errors import DataError
from mim_jax.data.npy import open_npy
from mim_jax.data.tokens_cache import FIELDS, HEADER, plain, sha256_of
from mim_jax.reading import Unreadable, mapping, read_json
from mim_jax.storage import (
    atomic_write,
    is_bucket,
    make_directory,
    parse_path,
    remove_temporary_files,
    write_json,
)

PLAN = "plan.json"


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
        if self._is_there():
            raise DataError(f"The token cache {self.path} exists already: remove it or choose another path.")
        self.length, self._rows = int(str(header["length"])), rows_per_shard
        self.dtype = np.dtype(np.int16 if int(str(header["vocabulary"])) <= 2**15 else np.int32)
        self._plan: dict[str, Any] = {**dict(plain(header)), "rows_per_shard": rows_per_shard}  # type: ignore[call-overload]
        # A bucket has no renames: the shards lie in their place at once, and the header, written last, makes them a cache.
        bucket = is_bucket(self.path)
        self.partial = self.path if bucket else self.path.with_name(f".{self.path.name}.partial")
        self._claim()

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
        """Writes the ids [rows, L] of a shard, whole or not at all. Raises DataError where they cannot be right."""
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
        if absent := self.missing():
            raise DataError(
                f"The token cache {self.path} still lacks {len(absent)} of {self.num_shards} shards."
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

    def _is_there(self) -> bool:
        if is_bucket(self.path):
            return (self.path / HEADER).exists()
        return os.path.lexists(self.path)

    def _file(self, shard: int) -> Path:
        return self.partial / f"tokens-{shard:05d}.npy"

    def _claim(self) -> None:
        """Begins, or goes on with, the folder of the unfinished cache."""
        plan = self.partial / PLAN
        if not plan.exists() and not os.path.islink(plan):
            if names := _visible(self.partial):
                raise DataError(
                    f"The folder {self.partial} holds files that are not ours ({', '.join(names[:3])}): move them away, or choose"
                    " another path for the token cache."
                )
            make_directory(self.partial, "the token cache")
            write_json(plan, self._plan)
            return
        begun = _read_plan(plan)
        changed = [key for key in {**begun, **self._plan} if begun.get(key) != self._plan.get(key)]
        if changed:
            facts = "; ".join(f"{key} was {begun.get(key)}, is {self._plan.get(key)}" for key in changed)
            raise DataError(
                f"The unfinished token cache {self.partial} was begun for something else ({facts}): remove it, or choose"
                " another path."
            )


def _visible(folder: Path) -> list[str]:
    """Names in a folder, without the temporary files of other hosts that begin the same cache."""
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def _read_plan(plan: Path) -> dict[str, Any]:
    try:
        begun: dict[str, Any] = read_json(plan, mapping())
    except Unreadable as error:
        raise DataError(
            f"The plan {plan} of an unfinished token cache is damaged ({error}): remove {plan.parent}."
        ) from error
    return begun


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
