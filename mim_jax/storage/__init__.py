"""Where things lie and whose they are: paths and whole files, locks, directories that are ours."""

from mim_jax.storage.files import (
    StorageError,
    atomic_write,
    atomic_write_path,
    is_bucket,
    local_copy,
    make_directory,
    open_to_append,
    parse_path,
    remove_temporary_files,
    require_local,
    write_bytes,
    write_json,
    write_text,
)
from mim_jax.storage.lock import Lock

__all__ = [
    "Lock",
    "StorageError",
    "atomic_write",
    "atomic_write_path",
    "is_bucket",
    "local_copy",
    "make_directory",
    "open_to_append",
    "parse_path",
    "remove_temporary_files",
    "require_local",
    "write_bytes",
    "write_json",
    "write_text",
]
