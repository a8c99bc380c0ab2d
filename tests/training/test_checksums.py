"""Checksums of files."""

import hashlib
from pathlib import Path

from mim_jax.training.checkpoints.manifest import compute_checksums, find_damage


def test_sums_every_file_below_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(b"123")
    (tmp_path / "a" / "b" / "empty").touch()
    assert compute_checksums(tmp_path) == {
        "a/b/empty": {"size": 0, "sha256": hashlib.sha256().hexdigest()},
        "one": {"size": 3, "sha256": hashlib.sha256(b"123").hexdigest()},
    }


def test_names_the_first_damage(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"123")
    sums = compute_checksums(tmp_path)
    (tmp_path / "dropping").touch()
    assert find_damage(tmp_path, sums) is None
    (tmp_path / "two").write_bytes(b"124")
    assert find_damage(tmp_path, sums) == "two does not have the contents that were saved (checksum)"
    (tmp_path / "two").write_bytes(b"12")
    assert find_damage(tmp_path, sums) == "two has 2 bytes instead of 3"
    (tmp_path / "one").unlink()
    assert find_damage(tmp_path, sums) == "one is missing"
