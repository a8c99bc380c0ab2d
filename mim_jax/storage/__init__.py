"""Where things lie and whose they are: paths and whole files, locks, directories that are ours."""

from mim_jax.storage.files import (
    StorageError,
    copied_here,
    is_bucket,
    local,
    located,
    make_folder,
    open_to_append,
    remove_leftovers,
    whole_file,
    whole_file_by_name,
    write_bytes,
    write_json,
    write_text,
)
from mim_jax.storage.lock import Lock

__all__ = [
    "Lock",
    "StorageError",
    "copied_here",
    "is_bucket",
    "local",
    "located",
    "make_folder",
    "open_to_append",
    "remove_leftovers",
    "whole_file",
    "whole_file_by_name",
    "write_bytes",
    "write_json",
    "write_text",
]
