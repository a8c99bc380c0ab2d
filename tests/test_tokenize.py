"""Tokens of a whole source: computed once or in every step they are the same; wherever the command is stopped, so are the bytes."""

import functools
import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image
from small import keys

from mim_jax.cached_tokens import HELD_OUT, held_out_tokens
from mim_jax.config.check import ConfigError, check
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.data import DataError, EvenSample, InputSpec, Loader, TokenCache, open_dataset
from mim_jax.data.crop import box_for
from mim_jax.data.datasets.base import ArrayDataset
from mim_jax.evaluators import eval_batches, make_evaluators
from mim_jax.methods import build_method, complete_options
from mim_jax.tasks import fit_tokenizer, tokenize
from mim_jax.tasks.codes_report import most_used
from mim_jax.tokenizers.tokenizer import open_tokenizer
from mim_jax.training.shutdown import EXIT_AGAIN, Shutdown
from mim_jax.training.state import TrainState

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


def method_of(**more: object):
    config = check(override(load("configs/mapet.py"), {**TINY, "data.batch_size": 8, **more}))
    return build_method(complete_options(resolve(config, num_examples=1437, num_devices=1, platform="cpu")))


def test_cached_and_online_tokens_are_the_same(tokenizer, cache) -> None:
    online, cached = method_of(**{"method.weights": tokenizer}), method_of(**{"method.tokens": str(cache)})
    dataset = open_dataset("digits", "train")
    tokens = TokenCache.open(cache, expect={})
    with (
        Loader(dataset, online.input_spec, batch_size=8, seed=0) as first,
        Loader(
            dataset, cached.input_spec, batch_size=8, seed=0, extras={"tokens": tokens.__getitem__}
        ) as second,
    ):
        views = [
            jax.jit(method.corrupt)(keys(8), loader.batch(3), artefacts)
            for method, loader, artefacts in ((online, first, online.frozen), (cached, second, {}))
        ]
    np.testing.assert_array_equal(views[0]["labels"], views[1]["labels"])
    np.testing.assert_array_equal(views[0]["patches"], views[1]["patches"])
    assert len(np.unique(views[0]["labels"])) > 4 and "teacher" in online.frozen and not cached.frozen
    assert any("runs in every step" in line for line in online.remarks)


def test_the_tokenizers_image_is_flipped_with_the_networks(tokenizer) -> None:
    """Ids of a flipped example are those of its mirrored image, not of the image as it was loaded."""
    method = method_of(**{"method.weights": tokenizer})
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    flip = np.array([False, True, True, False])
    mirrored = np.where(flip[:, None, None, None], image[:, :, ::-1], image)
    ids = method.labels({"teacher": image, "flip": flip}, None, method.frozen)
    expected = method.labels({"teacher": mirrored, "flip": np.zeros(4, bool)}, None, method.frozen)
    np.testing.assert_array_equal(ids, expected)
    unflipped = method.labels({"teacher": image, "flip": np.zeros(4, bool)}, None, method.frozen)
    assert (np.asarray(ids) != np.asarray(unflipped)).any(axis=1).tolist() == flip.tolist()


def held_out_loss(method, tmp_path: Path, parameters) -> dict[str, float]:
    """Of untrained parameters, on a part of the held-out digits."""
    config = method.config
    axes = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh((1, 1, 1), axes, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
    splits = [open_dataset("digits", split) for split in ("train", "test")]
    batches = functools.partial(eval_batches, config, mesh)
    evaluators = make_evaluators(config, method, mesh, *splits, batches, tmp_path)
    (held_out,) = (evaluator for evaluator in evaluators if evaluator.name == "heldout")
    state = TrainState(jnp.int32(0), parameters, {}, method.frozen, {})
    return held_out(state, baselines=False)


def test_a_run_from_a_cache_has_the_held_out_loss_of_one_without(tokenizer, cache, tmp_path, capsys) -> None:
    """100 of the 360 held-out images: their ids must be found by their numbers in the source."""
    some = {"eval.heldout_examples": 100, "eval.knn": False}
    online = method_of(**{"method.weights": tokenizer, **some})
    cached = method_of(**{"method.tokens": str(cache), **some})
    parameters = online.init_params(jax.random.key(0))
    found = held_out_loss(cached, tmp_path, parameters)
    assert found == pytest.approx(held_out_loss(online, tmp_path, parameters), rel=1e-6)
    assert found.keys() == {"eval/loss", "eval/token_accuracy"}
    assert "no held-out loss" not in capsys.readouterr().out


def test_ids_of_other_held_out_images_are_refused(tokenizer, cache, tmp_path, capsys) -> None:
    """Another view, other images; and a cache without them is said to have none."""
    cached = method_of(**{"method.tokens": str(cache), "augment.eval_crop": "squash"})
    with pytest.raises(DataError, match=r'held_out was made for view = "none", but this run has "squash"'):
        held_out_tokens(cached, open_dataset("digits", "test"))
    with pytest.raises(DataError, match="held_out was made for length = 360"):
        held_out_tokens(method_of(**{"method.tokens": str(cache)}), open_dataset("digits", "train"))
    old = tmp_path / "old"
    shutil.copytree(cache, old)
    shutil.rmtree(old / HELD_OUT)
    config = method_of(**{"method.tokens": str(old), "eval.knn": False}).config
    splits = [open_dataset("digits", split) for split in ("train", "test")]
    assert make_evaluators(config, build_method(config), None, *splits, None, tmp_path) == []  # type: ignore[arg-type]
    assert f"the token cache {old} holds the training images only" in capsys.readouterr().out


def test_the_report_shows_codes_of_all_classes() -> None:
    """Of a source in class order, where every image of a class is of one colour and all have one code."""
    images = np.repeat(np.arange(2000) // 200, 64 * 3).reshape(-1, 8, 8, 3).astype(np.uint8)
    ordered = ArrayDataset("x", images, np.arange(2000, dtype=np.int32) // 200, list("abcdefghij"), "ordered")
    few = EvenSample(ordered, 1000)
    ids = np.zeros((1000, 16), np.int32)
    ((code, patches), *_) = most_used(few, InputSpec((8, 8), "none"), (4, 4), np.array([9, 0]), ids)
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
    assert tokenize.run([*arguments(tokenizer, other), "--batch_size=64"]) == EXIT_AGAIN
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
    spec = InputSpec((28, 28), "centre_square", teacher=(56, 56), teacher_resample="lanczos")
    box = box_for(spec, *shape, seed=0, draw=0, index=0)
    long = 0 if shape[0] > shape[1] else 1
    assert (box[long], box[long] + box[2 + long]) == (62, 437) and box[1 - long] == 0
    dataset = open_dataset(f"folder:{tmp_path}", "train", cache_dir=str(tmp_path / "listing"))
    with Loader(dataset, spec, batch_size=2, seed=0) as loader:
        batch = loader.batch(0)
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
