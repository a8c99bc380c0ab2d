"""Tokens of a whole dataset: computed once or in every step they are the same; wherever the command is stopped, so are the bytes."""

import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image
from small import keys

from mim_jax.config.check import ConfigError, check
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.config.schema import Config
from mim_jax.data import (
    DataError,
    ImageView,
    Loader,
    SecondSizeView,
    TokenCache,
    evaluation_batches,
    evenly_spaced,
    open_dataset,
    over_classes,
)
from mim_jax.data.crop import CentreSquare, NoCrop
from mim_jax.data.datasets.base import ArrayDataset
from mim_jax.errors import ExitCode
from mim_jax.methods import Method, Variables, build_method, complete_options
from mim_jax.methods.token_method import HELD_OUT
from mim_jax.tasks import fit_tokenizer, tokenize
from mim_jax.tasks.codes_report import most_used
from mim_jax.tokenizers.tokenizer import open_tokenizer
from mim_jax.training.evaluation import evaluation_context
from mim_jax.training.shutdown import Shutdown

pytestmark = pytest.mark.slow

TINY = {"model.variant": "mu", "method.vocabulary": 16, "augment.flip": False}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """16 codes of 2 x 2 pixels, of digits."""
    workdir = tmp_path_factory.mktemp("tokenizer") / "run"
    config = check(
        override(load("configs/tokenizer.py"), {"job.vocabulary": 16, "job.iterations": 2, "job.restarts": 1})
    )
    assert fit_tokenizer.run(config, workdir) == 0
    assert sorted(path.name for path in workdir.iterdir()) == [
        "config.json", "metrics.jsonl", "mim_jax.json", "report.html", "tokenizer.safetensors", "versions.json",
    ]  # fmt: skip
    assert fit_tokenizer.run(config, workdir) == 0  # finished: nothing to do
    return str(workdir / fit_tokenizer.FILE)


def arguments(weights: str, tokens: Path, **more: object) -> list[str]:
    values = {**TINY, "method.weights": weights, "method.tokens": tokens, **more}
    return ["--config=configs/mapet.py", *(f"--config.{key}={value}" for key, value in values.items())]


@pytest.fixture(scope="module")
def cache(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "tokens"
    assert tokenize.run(arguments(tokenizer, folder)) == 0
    assert "The most used codes" in folder.with_name("tokens.html").read_text()
    assert "of 1024 images spread over the source" in folder.with_name("tokens.html").read_text()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def config_of(**more: object) -> Config:
    config = check(override(load("configs/mapet.py"), {**TINY, "data.batch_size": 8, **more}))
    return complete_options(resolve(config, num_examples=1437, num_devices=1, platform="cpu"))


def method_of(**more: object) -> Method:
    return build_method(config_of(**more))


def test_cached_and_online_tokens_are_the_same(tokenizer, cache) -> None:
    online, cached = method_of(**{"method.weights": tokenizer}), method_of(**{"method.tokens": str(cache)})
    dataset = open_dataset("digits", "train")
    views = []
    for method in (online, cached):
        with Loader(dataset, method.train_view(dataset), batch_size=8, seed=0) as loader:
            corrupt = jax.jit(method.corrupt)
            views.append(corrupt(keys(8), loader.batch(3), Variables(artefacts=method.constants)))
    np.testing.assert_array_equal(views[0]["labels"], views[1]["labels"])
    np.testing.assert_array_equal(views[0]["patches"], views[1]["patches"])
    assert len(np.unique(views[0]["labels"])) > 4 and "teacher" in online.constants and not cached.constants
    assert any("runs in every step" in line for line in online.notes)


def test_cached_ids_are_found_by_the_number_in_the_dataset(cache) -> None:
    """Of examples spread over a dataset, and of some of these: those that a run's report draws."""
    method = method_of(**{"method.tokens": str(cache)})
    for split, folder, view_of in (
        ("train", cache, method.train_view),
        ("test", cache / HELD_OUT, method.eval_view),
    ):
        dataset = open_dataset("digits", split)
        tokens = TokenCache.open(folder, expect={})
        few = evenly_spaced(dataset, 100)
        fewer = over_classes(few, 8)
        numbers = few.numbers(range(100))
        assert set(fewer.numbers(range(8)).tolist()) < set(numbers.tolist())
        for part in (dataset, few, fewer):
            (batch,) = evaluation_batches(part, view_of(part), batch_size=8, limit=8)
            wanted = np.arange(8) if part is dataset else part.numbers(range(8))
            np.testing.assert_array_equal(batch["tokens"], tokens[wanted])
            np.testing.assert_array_equal(batch["image"], dataset.images[wanted])


@pytest.mark.parametrize("change", [{"augment.flip": True}, {"augment.crop": "random_resized"}])
def test_cached_ids_are_refused_for_a_random_view(cache, change) -> None:
    method = method_of(**{"method.tokens": str(cache), **change})
    with pytest.raises(ConfigError, match="one fixed, unflipped view"):
        method.train_view(open_dataset("digits", "train"))


def test_the_tokenizers_image_is_flipped_with_the_networks(tokenizer) -> None:
    """Ids of a flipped example are those of its mirrored image, not of the image as it was loaded."""
    method = method_of(**{"method.weights": tokenizer})
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    flip = np.array([False, True, True, False])
    mirrored = np.where(flip[:, None, None, None], image[:, :, ::-1], image)
    ids = method.labels({"teacher": image, "flip": flip}, None, method.constants)
    expected = method.labels({"teacher": mirrored, "flip": np.zeros(4, bool)}, None, method.constants)
    np.testing.assert_array_equal(ids, expected)
    unflipped = method.labels({"teacher": image, "flip": np.zeros(4, bool)}, None, method.constants)
    assert (np.asarray(ids) != np.asarray(unflipped)).any(axis=1).tolist() == flip.tolist()


def evaluators_of(config: Config, tmp_path: Path):
    axes = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh((1, 1, 1), axes, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    train, test = (open_dataset("digits", split) for split in ("train", "test"))
    return build_method(config).evaluators(evaluation_context(config, mesh, train, test, tmp_path))


def held_out_loss(config: Config, tmp_path: Path, params) -> dict[str, float]:
    """Of untrained parameters, on a part of the held-out digits."""
    (held_out,) = evaluators_of(config, tmp_path)
    assert held_out.name == "heldout"
    return held_out(Variables(params=params, artefacts=build_method(config).constants), baselines=False)


def test_a_run_from_a_cache_has_the_held_out_loss_of_one_without(tokenizer, cache, tmp_path) -> None:
    """100 of the 360 held-out images: their ids must be found by their numbers in the dataset."""
    some = {"eval.heldout_examples": 100, "eval.knn": False}
    online = config_of(**{"method.weights": tokenizer, **some})
    cached = config_of(**{"method.tokens": str(cache), **some})
    params = build_method(online).init_params(jax.random.key(0))
    found = held_out_loss(cached, tmp_path, params)
    assert found == pytest.approx(held_out_loss(online, tmp_path, params), rel=1e-6)
    assert found.keys() == {"eval/loss", "eval/token_accuracy"}
    assert not build_method(cached).notes


def test_ids_of_other_held_out_images_are_refused(cache, tmp_path) -> None:
    """Another view, other images; and a cache without them is said to have none."""
    cached = method_of(**{"method.tokens": str(cache), "augment.eval_crop": "squash"})
    with pytest.raises(DataError, match=r'held_out was made for view = "none", but this run has "squash"'):
        cached.eval_view(open_dataset("digits", "test"))
    with pytest.raises(DataError, match="held_out was made for length = 360"):
        method_of(**{"method.tokens": str(cache)}).eval_view(open_dataset("digits", "train"))
    old = tmp_path / "old"
    shutil.copytree(cache, old)
    shutil.rmtree(old / HELD_OUT)
    config = config_of(**{"method.tokens": str(old), "eval.knn": False})
    assert evaluators_of(config, tmp_path) == []
    (note,) = build_method(config).notes
    assert f"the token cache {old} holds the training images only" in note


def test_the_report_shows_codes_of_all_classes() -> None:
    """Of a dataset in class order, where every image of a class is of one colour and all have one code."""
    images = np.repeat(np.arange(2000) // 200, 64 * 3).reshape(-1, 8, 8, 3).astype(np.uint8)
    ordered = ArrayDataset("x", images, np.arange(2000, dtype=np.int32) // 200, list("abcdefghij"), "ordered")
    few = evenly_spaced(ordered, 1000)
    ids = np.zeros((1000, 16), np.int32)
    ((code, patches), *_) = most_used(few, ImageView((8, 8), NoCrop()), (4, 4), np.array([9, 0]), ids)
    assert code == 0 and patches[:, 0, 0, 0].tolist() == list(range(10))


@pytest.mark.parametrize("after", [0, 3, 8])
def test_stopped_anywhere_and_started_again(tokenizer, cache, tmp_path, monkeypatch, after) -> None:
    monkeypatch.setattr(tokenize, "ROWS_PER_SHARD", 300)
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert tokenize.run([*arguments(tokenizer, whole), "--batch_size=64"]) == 0
    asked = []

    class Stopping(Shutdown):
        @property
        def requested(self) -> bool:
            asked.append(1)
            if len(asked) > after:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().requested

    monkeypatch.setattr(tokenize, "Shutdown", Stopping)
    assert tokenize.run([*arguments(tokenizer, other), "--batch_size=64"]) == ExitCode.STOPPED
    assert not other.exists()
    monkeypatch.setattr(tokenize, "Shutdown", Shutdown)
    assert tokenize.run([*arguments(tokenizer, other), "--batch_size=64"]) == 0
    files = contents(whole)
    assert contents(other) == files and len(files) == 6 + 3  # shards and header of each split
    one, many = (TokenCache.open(path, expect={})[np.arange(1437)] for path in (cache, other))
    np.testing.assert_array_equal(one, many)  # nor do the shards matter


def test_two_hosts_share_the_shards(tokenizer, tmp_path, monkeypatch) -> None:
    """Each writes every second shard; the first one finishes when all are there. The bytes are those of one host."""
    monkeypatch.setattr(tokenize, "ROWS_PER_SHARD", 300)
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert tokenize.run(arguments(tokenizer, whole)) == 0
    waited = []
    monkeypatch.setattr(tokenize.multihost_utils, "sync_global_devices", waited.append)
    monkeypatch.setattr(tokenize.multihost_utils, "broadcast_one_to_all", lambda value: value)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for host in (1, 0):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        assert not shared.exists()
        assert tokenize.run(arguments(tokenizer, shared)) == 0
    assert contents(shared) == contents(whole) and len(waited) == 2


@pytest.mark.parametrize(
    "change, says",
    [
        ({"tokenizer": "kclip"}, 'made for tokenizer = "pixels"'),
        ({"tokenizer_fingerprint": "other"}, "made for tokenizer_fingerprint"),
        ({"view": "centre_square"}, 'made for view = "none"'),
        ({"source_fingerprint": "of another order"}, "made for source_fingerprint"),
        ({"length": 1438}, "made for length = 1437"),
        ({"vocabulary": 64}, "made for vocabulary = 16"),
        ({"grid": [7, 7]}, r"made for grid = \[4, 4\]"),
    ],
)
def test_tokens_of_something_else_are_refused(cache, change, says) -> None:
    with pytest.raises(DataError, match=says):
        TokenCache.open(cache, expect=change)


def test_mistakes_are_one_sentence(tokenizer, tmp_path, capsys) -> None:
    free = tmp_path / "tokens"
    cases = [
        ({"method.weights": ""}, "config.method.weights is empty"),
        ({"augment.flip": True}, "one fixed view"),
        ({"augment.crop": "random_resized"}, "one fixed view"),
        ({"augment.eval_crop": "random_resized"}, "eval_crop=centre_square"),
        ({"method.vocabulary": 32}, "has 16 codes, but config.method.vocabulary=32"),
        ({"model.patch": 4}, "4 x 4 ids an image, but the network has 2 x 2"),
        ({"method.tokenizer": "kclip"}, "is a pixels tokenizer"),
        ({"method.tokenizer": "dalle"}, "not DALL-E's encoder"),
        ({"method.tokenizer": "vqkd"}, "not a VQ-KD tokenizer"),
        ({"method.weights": tmp_path / "x.safetensors"}, "there is no file"),
    ]
    for change, says in cases:
        assert tokenize.run(arguments(tokenizer, free, **change)) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1, (change, said)
        assert not free.exists()
    assert tokenize.run(["--config=configs/mae.py"]) == 2
    assert "predicts no token ids" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"needs config\.method\.tokens"):
        method_of(**{"method.tokenizer": "kclip"})
    with pytest.raises(ConfigError, match="fixed view"):
        fit_tokenizer.check_job(check(override(load("configs/tokenizer.py"), {"augment.flip": True})))


@pytest.mark.parametrize("shape", [(375, 500), (500, 375)])
def test_teacher_and_network_see_the_same_square(tmp_path, shape) -> None:
    """docs/papers/mapet.md 14.2, item 12: 500 x 375 gives columns 62 to 437; both views show the same cells."""
    ramp = np.zeros((*shape, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, shape[0])[:, None]
    ramp[..., 1] = np.linspace(0, 255, shape[1])[None, :]
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.fromarray(ramp).save(tmp_path / split / label / "ramp.png")
    view = SecondSizeView(ImageView((28, 28), CentreSquare()), "teacher", (56, 56), "lanczos")
    dataset = open_dataset(f"folder:{tmp_path}", "train", cache_dir=str(tmp_path / "listing"))
    with Loader(dataset, view, batch_size=2, seed=0) as loader:
        batch = loader.batch(0)
    long = 0 if shape[0] > shape[1] else 1
    for box in batch["box"] * np.tile(shape, 2):
        assert [box[long], box[long] + box[2 + long], box[1 - long]] == pytest.approx([62, 437, 0])
    cells = [
        batch[name].astype(float).reshape(2, 14, size, 14, size, 3).mean((2, 4))
        for name, size in (("image", 2), ("teacher", 4))
    ]
    np.testing.assert_allclose(cells[0], cells[1], atol=1.0)
    assert np.ptp(cells[0][..., :2]) > 150


def test_ids_do_not_depend_on_the_batch_and_the_scale_matters(tokenizer) -> None:
    opened = open_tokenizer("pixels", tokenizer)
    images = np.random.default_rng(0).random((6, 8, 8, 3), np.float32)
    ids = jax.jit(opened.ids)
    whole = np.asarray(ids(opened.params, images))
    parts = np.concatenate([np.asarray(ids(opened.params, images[i : i + 2])) for i in (0, 2, 4)])
    np.testing.assert_array_equal(whole, parts)
    assert whole.shape == (6, 16) and opened.fingerprint == open_tokenizer("pixels", tokenizer).fingerprint
    assert (np.asarray(ids(opened.params, 0.5 * images)) != whole).any()  # no normalisation of features
