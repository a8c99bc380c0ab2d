"""Damaged checkpoints are refused with a reason, the newest good one is used; failed saves harm nothing."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging as absl_logging

from mim_jax.training.checkpoints import CheckpointError, Checkpoints, manifest

_HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
_TARGET = {"x": jax.ShapeDtypeStruct((3000,), jnp.float32, sharding=_HERE)}


def _state(step: int) -> dict[str, jax.Array]:
    return {"x": jax.random.normal(jax.random.key(step), (3000,))}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints 10, 20 and 30."""
    with Checkpoints(tmp_path / "run", keep_last=3) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, _state(step))
    return tmp_path / "run"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    said: list[str] = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *values: said.append(text % values))
    yield said


def _restored_step(directory: Path) -> int | None:
    """The step restored, after comparing every bit with what that step saved."""
    with Checkpoints(directory) as checkpoints:
        found = checkpoints.restore(_TARGET)
    if found is None:
        return None
    np.testing.assert_array_equal(found[1]["x"], _state(found[0])["x"])
    return found[0]


def _largest(step: Path) -> Path:
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _truncate(step: Path) -> None:
    path = _largest(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(step: Path) -> None:
    _largest(step).write_bytes(b"")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _flip_one_bit_in_the_middle(step: Path) -> None:
    _flip(_largest(step))


def _flip_one_bit_of_the_manifest(step: Path) -> None:
    _flip(step / "manifest.json")


def _delete_array_file(step: Path) -> None:
    _largest(step).unlink()


def _delete_orbax_metadata(step: Path) -> None:
    (step / "arrays" / "_METADATA").unlink()


def _delete_manifest(step: Path) -> None:
    (step / "manifest.json").unlink()


def _empty_manifest(step: Path) -> None:
    (step / "manifest.json").write_bytes(b"")


def _delete_everything_inside(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


_DAMAGE: dict[Callable[[Path], None], str] = {
    _truncate: r"has \d+ bytes instead of \d+",
    _empty: "has 0 bytes instead of",
    _flip_one_bit_in_the_middle: "does not have the contents that were saved",
    _flip_one_bit_of_the_manifest: "manifest.json (does not have the contents|cannot be read)",
    _delete_array_file: "is missing",
    _delete_orbax_metadata: "arrays/_METADATA is missing",
    _delete_manifest: "manifest.json cannot be read",
    _empty_manifest: "manifest.json cannot be read .it is empty",
    _delete_everything_inside: "manifest.json cannot be read",
}


@pytest.mark.parametrize("damage", _DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_refused_and_said(run: Path, warnings: list[str], damage: Callable[[Path], None]) -> None:
    damage(run / "00000030")
    assert _restored_step(run) == 20
    assert len(warnings) == 1
    assert re.search(f"00000030 is refused: .*{_DAMAGE[damage]}.*; trying the one before", warnings[0])


def test_falls_back_past_several(run: Path, warnings: list[str]) -> None:
    _truncate(run / "00000030")
    _delete_manifest(run / "00000020")
    assert _restored_step(run) == 10
    assert [("00000030" in text, "00000020" in text) for text in warnings] == [(True, False), (False, True)]


def test_all_bad_is_an_error(run: Path) -> None:
    for step in run.iterdir():
        _empty(step)
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps() == [10, 20, 30]
        for ask in (lambda: checkpoints.restore(_TARGET), checkpoints.newest_good):
            with pytest.raises(CheckpointError, match=r"none of the 3 checkpoints in .* is good"):
                ask()


def test_a_step_asked_for_by_number_has_no_fallback(run: Path) -> None:
    _flip_one_bit_in_the_middle(run / "00000030")
    _empty_manifest(run / "00000020")
    with Checkpoints(run) as checkpoints:
        with pytest.raises(CheckpointError, match=r"00000030 is damaged: .*; use another step"):
            checkpoints.restore_partial(_TARGET, step=30)
        with pytest.raises(
            CheckpointError, match=r"00000020 is damaged: manifest.json cannot be read .it is empty"
        ):
            checkpoints.metadata(20)


def test_leftovers_of_a_killed_save_are_said_then_removed(run: Path, warnings: list[str]) -> None:
    names = [
        "00000040.orbax-checkpoint-tmp",
        "discarded-00000005",
        "unfinished-00000040",
    ]  # the last two by earlier versions
    for name in names:
        shutil.copytree(run / "00000030", run / name)
    (run / "notes-of-somebody").mkdir()
    assert _restored_step(run) == 30
    assert [f"{name} is not used" in text for name, text in zip(names, warnings, strict=True)] == [True] * 3
    with Checkpoints(run) as checkpoints:
        checkpoints.save(40, _state(40))
    assert sorted(path.name for path in run.iterdir()) == ["00000030", "00000040", "notes-of-somebody"]


def test_a_refused_step_is_saved_again(run: Path, warnings: list[str]) -> None:
    _flip_one_bit_in_the_middle(run / "00000030")
    with Checkpoints(run, keep_last=1) as checkpoints:
        assert checkpoints.newest_good() == 20
        checkpoints.save(25, _state(25))  # the refused 30 must not count as the last one kept
        checkpoints.wait()
        assert checkpoints.steps() == [25, 30]
        assert checkpoints.newest_good() == 25
        checkpoints.save(30, _state(30))
    assert [path.name for path in run.iterdir()] == ["00000030"]
    assert _restored_step(run) == 30


def test_disk_full_is_one_sentence_and_the_rest_stays(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with Checkpoints(small / "run") as checkpoints:
            checkpoints.save(10, _state(10))
            checkpoints.save(20, {"x": jax.random.normal(jax.random.key(0), (500_000,))})
            with pytest.raises(
                CheckpointError, match=r"20 could not be written to .*: the disk is full"
            ) as caught:
                checkpoints.wait()
            assert "\n" not in str(caught.value)
            assert [path.name for path in (small / "run").iterdir()] == ["00000010"]
            checkpoints.save(30, _state(30))
        assert _restored_step(small / "run") == 30
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_failing_commit_is_said_and_the_rest_stays(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "write_manifest", full)
    with Checkpoints(run) as checkpoints:
        checkpoints.save(40, _state(40))
        with pytest.raises(CheckpointError, match=r"checkpoint 40 .*the disk is full"):
            checkpoints.save(50, _state(50))
        assert checkpoints.steps() == [10, 20, 30]
        checkpoints.wait()  # the failure is said once
        monkeypatch.undo()
        checkpoints.save(50, _state(50))
    assert sorted(path.name for path in run.iterdir()) == ["00000030", "00000050"]
    assert _restored_step(run) == 50


def test_an_old_checkpoint_that_cannot_be_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    saved: list[int] = []
    with Checkpoints(tmp_path, keep_last=1, on_saved=saved.append) as checkpoints:
        checkpoints.save(1, _state(1))
        with monkeypatch.context() as patched:
            patched.setattr(ocp.path.deleter.PathDeleter, "delete", denied)
            checkpoints.save(2, _state(2))
            with pytest.raises(
                CheckpointError, match=r"could not be removed: Permission denied; .* the newest is saved"
            ):
                checkpoints.wait()
        assert saved == checkpoints.steps() == [1, 2]
        checkpoints.save(3, _state(3))
    assert saved == [1, 2, 3] and [path.name for path in tmp_path.iterdir()] == ["00000003"]


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        Checkpoints(tmp_path / "file" / "run") as checkpoints,
        pytest.raises(
            CheckpointError, match=r"checkpoint 1 could not be written to .*file/run: .*; put that right"
        ),
    ):
        checkpoints.save(1, _state(1))


def test_every_file_is_hashed_once_a_save_and_once_a_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    checksum = manifest._checksum
    monkeypatch.setattr(manifest, "_checksum", lambda path: hashed.append(path.name) or checksum(path))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1))
        checkpoints.wait()
        names = sorted(hashed)
        assert len(names) == len(manifest.read_manifest(checkpoints.directory / "00000001").files)
    hashed.clear()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest_good() == 1
        assert checkpoints.restore(_TARGET) is not None
        assert checkpoints.restore_partial(_TARGET)[0] == 1
    assert sorted(hashed) == names


def test_an_error_of_the_run_is_not_hidden_by_a_save(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "compute_checksums", lambda path: 1 / 0)
    with pytest.raises(FloatingPointError), Checkpoints(run) as checkpoints:
        checkpoints.save(40, _state(40))
        raise FloatingPointError("NaN")
    assert _restored_step(run) == 30


def test_a_save_that_ctrl_c_interrupts_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    saved: list[int] = []
    monkeypatch.setattr(ocp.CheckpointManager, "save", interrupt)
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path, on_saved=saved.append) as checkpoints:
        checkpoints.save(1, _state(1))
    assert not saved and not os.listdir(tmp_path)


def test_sums_every_file_below_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(b"123")
    (tmp_path / "a" / "b" / "empty").touch()
    assert manifest.compute_checksums(tmp_path) == {
        "a/b/empty": {"size": 0, "sha256": hashlib.sha256().hexdigest()},
        "one": {"size": 3, "sha256": hashlib.sha256(b"123").hexdigest()},
    }


def test_names_the_first_damage(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"123")
    sums = manifest.compute_checksums(tmp_path)
    (tmp_path / "dropping").touch()
    assert manifest.find_damage(tmp_path, sums) is None
    (tmp_path / "two").write_bytes(b"124")
    assert manifest.find_damage(tmp_path, sums) == "two does not have the contents that were saved (checksum)"
    (tmp_path / "two").write_bytes(b"12")
    assert manifest.find_damage(tmp_path, sums) == "two has 2 bytes instead of 3"
    (tmp_path / "one").unlink()
    assert manifest.find_damage(tmp_path, sums) == "one is missing"
