"""Runs, checkpoints, token caches, weights and images in a bucket; and what says that it cannot lie there."""

import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import bucket
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from small import small_config
from tiny import STEPS, tiny_config, tiny_run

import mim_jax
import mim_jax.tasks.train
from mim_jax import storage
from mim_jax.compare.__main__ import run as compare
from mim_jax.config.check import ConfigError
from mim_jax.data import DataError, open_dataset
from mim_jax.data.tokens_cache import TokenCache, TokenWriter
from mim_jax.interop.files import read_weights, write_weights
from mim_jax.storage import Lock, StorageError
from mim_jax.storage import lock as lock_module
from mim_jax.tasks import convert_torch, fit_tokenizer
from mim_jax.training.checkpoints import CheckpointError, Checkpoints, read_custom_metadata
from mim_jax.training.monitoring.run_info import describe_init, init_name
from mim_jax.training.run_directory import RunDirectory

_HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
_TARGET = {"x": jax.ShapeDtypeStruct((300,), jnp.float32, sharding=_HERE)}
Objects = dict[str, tuple[bytes, int]]


@pytest.fixture(scope="module")
def served() -> Iterator[Objects]:
    with bucket.serving() as objects:
        yield objects


@pytest.fixture
def objects(served: Objects, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """An empty bucket. No local folder `gs:` appears."""
    monkeypatch.setattr(lock_module, "SETTLE_SECONDS", 0.0)
    served.clear()
    yield served
    assert not Path("gs:").exists()


def state(step: int) -> dict[str, jax.Array]:
    return {"x": jax.random.normal(jax.random.key(step), (300,))}


def kept(objects: Objects, folder: str) -> set[str]:
    """First parts of the names below a folder."""
    return {
        name.removeprefix(f"{folder}/").split("/")[0] for name in objects if name.startswith(f"{folder}/")
    }


def test_checkpoints_live_in_a_bucket(objects: Objects) -> None:
    directory, metadata = "gs://bucket/run/checkpoints", {"config": {"a": 1}}
    with Checkpoints(directory, keep_last=2, custom_metadata=metadata) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step))
            checkpoints.wait()
        assert kept(objects, "bucket/run/checkpoints") == {"00000002", "00000003"}
        assert read_custom_metadata(checkpoints.directory) == metadata
        found = checkpoints.restore(_TARGET)
        assert found is not None and found[0] == 3
        np.testing.assert_array_equal(found[1]["x"], state(3)["x"])


def test_a_bucket_of_an_earlier_version(objects: Objects) -> None:
    """There a step has no commit_success.txt, and one that was saved again is 00000002.1."""
    folder = "bucket/run/checkpoints"
    with Checkpoints(f"gs://{folder}", keep_last=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
    for name, (content, _) in dict(objects).items():
        del objects[name]
        if not name.endswith(("2/commit_success.txt", "1/commit_success.txt", "_CHECKPOINT_METADATA")):
            bucket.put(name.replace("00000002", "00000002.1"), content)
    with Checkpoints(f"gs://{folder}", keep_last=1) as checkpoints:
        found = checkpoints.restore(_TARGET)
        assert found is not None and found[0] == 2
        np.testing.assert_array_equal(found[1]["x"], state(2)["x"])
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert kept(objects, folder) == {"00000003"}


def test_a_checkpoint_in_a_bucket_counts_with_its_manifest(objects: Objects) -> None:
    folder = "bucket/run/checkpoints"
    with Checkpoints(f"gs://{folder}", keep_last=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
        checkpoints.wait()
        del objects[f"{folder}/00000002/manifest.json"]  # as a kill before the last upload leaves it
        assert checkpoints.steps() == [1] and checkpoints.newest_good() == 1
        checkpoints.save(2, state(2))
        checkpoints.save(3, state(3))
        checkpoints.wait()
        assert kept(objects, folder) == {"00000001", "00000002", "00000003"}
        name = max(
            (name for name in objects if "00000003/arrays" in name), key=lambda name: len(objects[name][0])
        )
        bucket.put(name, objects[name][0][:-1] + b"x")
        with pytest.raises(CheckpointError, match=rf"gs://{folder}/00000003 is damaged: .*\(checksum\)"):
            checkpoints.restore_partial(_TARGET, step=3)
        assert checkpoints.newest_good() == 2
        checkpoints.save(3, state(3))  # replaces it
        checkpoints.wait()
        assert checkpoints.newest_good() == 3


@pytest.mark.slow
def test_a_run_in_a_bucket_trains_stops_resumes_and_is_loaded(
    objects: Objects,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = "gs://bucket/runs/tiny"
    with monkeypatch.context() as stopping:
        stopping.setattr("mim_jax.tasks.train.Shutdown.requested_at", lambda self, step: step >= 3)
        assert tiny_run(workdir) == 75
    assert {"mim_jax.json", "config.json", "versions.json", "metrics.jsonl", "sessions.json"} <= kept(
        objects, "bucket/runs/tiny"
    )
    assert not any("lock" in name or "partial" in name for name in objects)
    assert tiny_run(workdir) == 0
    said = capsys.readouterr().out
    assert "resumed from checkpoint 3" in said and "no TensorBoard events" in said
    lines = [json.loads(line) for line in objects["bucket/runs/tiny/metrics.jsonl"][0].splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [*range(1, STEPS + 1)]
    assert b"<html" in objects["bucket/runs/tiny/report.html"][0]
    run = mim_jax.load(workdir)
    assert run.step == STEPS
    assert np.isfinite(run.features(np.zeros((1, *run.method.net.image_size, 3), np.uint8))).all()
    with pytest.raises(ConfigError, match=r"gs://bucket/runs/tiny holds a run with another configuration"):
        tiny_run(workdir, optim__lr=0.5)
    before = dict(objects)
    with pytest.raises(StorageError, match="lies in a bucket, where nothing can be moved aside"):
        mim_jax.tasks.train.run(tiny_config(), workdir, overwrite=True)
    assert objects == before


def test_whose_directory_it_is_in_a_bucket(objects: Objects) -> None:
    bucket.put("bucket/thesis/config.json", b'{"model_type": "vit"}')
    with (
        pytest.raises(StorageError, match="files that are not ours"),
        RunDirectory("gs://bucket/thesis", "train"),
    ):
        pass
    with RunDirectory("gs://bucket/run", "train") as run_directory:
        run_directory.acquire(small_config())
        with (
            pytest.raises(StorageError, match=rf"gs://bucket/run is in use by process {os.getpid()} on"),
            RunDirectory("gs://bucket/run", "train") as second,
        ):
            second.acquire(small_config())
    assert kept(objects, "bucket/run") == {"mim_jax.json", "config.json", "versions.json"}


def test_a_lock_in_a_bucket_is_its_holders_while_it_is_renewed(objects: Objects) -> None:
    other = {**lock_module.this_process(), "host": "tpu-3", "pid": 7}
    for silent, dead in ((10, False), (lock_module.STALE_SECONDS + 1, True)):
        storage.write_json("gs://bucket/run/lock.json", {**other, "beat": other["beat"] - silent})
        lock = Lock("gs://bucket/run/lock.json", "the run", settle_seconds=0.0)
        if dead:
            with lock:
                assert json.loads(objects["bucket/run/lock.json"][0])["pid"] == os.getpid()
        else:
            with pytest.raises(StorageError, match="process 7 on tpu-3"):
                lock.acquire()
    assert not objects


HEADER = {
    "tokenizer": "pixels", "tokenizer_fingerprint": "a", "vocabulary": 16, "grid": [2, 2], "view": "none", "size": [8, 8],
    "source": "digits", "length": 10, "source_fingerprint": "b",
}  # fmt: skip


def test_a_token_cache_in_a_bucket(objects: Objects) -> None:
    ids = np.random.default_rng(0).integers(0, 16, (10, 4))
    writer = TokenWriter("gs://bucket/tokens", HEADER, rows_per_shard=4)
    writer.write(0, ids[:4])
    with pytest.raises(DataError, match=r"gs://bucket/tokens has no header.json"):
        TokenCache.open("gs://bucket/tokens", expect={})
    writer = TokenWriter("gs://bucket/tokens", HEADER, rows_per_shard=4)  # after a kill
    assert writer.missing() == [1, 2]
    writer.write(1, ids[4:8])
    writer.write(2, ids[8:])
    writer.finish()
    np.testing.assert_array_equal(
        TokenCache.open("gs://bucket/tokens", expect={"length": 10})[np.arange(10)], ids
    )
    with pytest.raises(DataError, match="exists already"):
        TokenWriter("gs://bucket/tokens", HEADER)


def _png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def test_images_and_weights_in_a_bucket(objects: Objects) -> None:
    for number in range(6):
        bucket.put(f"bucket/images/{'ab'[number % 2]}/deep/{number}.png", _png(number))
    bucket.put("bucket/images/a/.hidden.png", b"")
    bucket.put("bucket/images/a/notes.txt", b"")
    source = open_dataset("folder:gs://bucket/images", "train")
    assert source.class_names == ("a", "b") and 0 < len(source) < 6
    assert {source[index].annotation.index for index in range(len(source))} == {0, 1}
    for name in ("train/0.png", "train/1.png", "train/2.png", "test/0.png"):
        bucket.put(f"bucket/split/{name}", _png(0))
    assert [len(open_dataset("folder:gs://bucket/split", split)) for split in ("train", "test")] == [3, 1]
    arrays = io.BytesIO()
    np.savez(arrays, images=np.zeros((20, 4, 4, 3), np.uint8), labels=np.arange(20) % 2)
    bucket.put("bucket/arrays.npz", arrays.getvalue())
    assert len(open_dataset("arrays:gs://bucket/arrays.npz", "train")) == 18
    write_weights("gs://bucket/w.safetensors", {"a": np.arange(3.0)})
    np.testing.assert_array_equal(read_weights("gs://bucket/w.safetensors")["a"], np.arange(3.0))
    for name in ("folder:gs://bucket/none", "arrays:gs://bucket/none.npz"):
        with pytest.raises(DataError, match=r"gs://bucket/none\S* (does not exist|for the source arrays)"):
            open_dataset(name, "train")


def test_what_cannot_lie_in_a_bucket_says_so(objects: Objects, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageError, match="k-means maps its features"):
        from mim_jax.config.check import check
        from mim_jax.config.files import load

        fit_tokenizer.run(check(load("configs/tokenizer.py")), "gs://bucket/t")
    assert compare(["--config=configs/compare.py", "--workdir=gs://bucket/compare"]) == 2
    assert convert_torch.run(["gs://bucket/in.pt", "out.safetensors"]) == 2
    with pytest.raises(DataError, match="packed in ArrayRecord files"):
        open_dataset("tfds:cifar10", "train", data_dir="gs://bucket/tfds")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("mim_jax: ") for line in lines)
    assert not objects


def test_file_uris_are_paths_of_this_machine(tmp_path: Path) -> None:
    with RunDirectory(f"file://{tmp_path}/run", "train") as run_directory:
        run_directory.acquire(small_config())
    assert (tmp_path / "run" / "config.json").exists() and run_directory.path == epath.Path(tmp_path / "run")
    with Checkpoints(f"file://{tmp_path}/run/checkpoints") as checkpoints:
        checkpoints.save(1, state(1))
    assert (tmp_path / "run" / "checkpoints" / "00000001" / "manifest.json").exists()
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(_png(number))
    assert len(open_dataset(f"folder:file://{tmp_path}", "train")) == 2
    writer = TokenWriter(f"file://{tmp_path}/tokens", HEADER | {"length": 1})
    writer.write(0, np.zeros((1, 4), int))
    writer.finish()
    assert re.fullmatch(
        r"[0-9a-f]{64}",
        json.loads((tmp_path / "tokens" / "header.json").read_text())["shards"]["tokens-00000.npy"]["sha256"],
    )


def test_what_a_run_began_from_is_named_wherever_it_lies(objects: Objects, tmp_path: Path) -> None:
    for init in ("gs://bucket/runs/tiny", f"file://{tmp_path}/tiny", str(tmp_path / "tiny")):
        with RunDirectory(init, "train") as run_directory:
            run_directory.acquire(small_config())
        config = dataclasses.replace(small_config(), init=init)
        assert init_name(config) == "tiny" and describe_init(config) == f"tiny (mapet, 24 steps), {init}"
