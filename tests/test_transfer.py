"""Probes, fine-tuning and training from scratch through the front door, starting from a finished run's directory."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import classes
from test_resume import history

import mim_jax
from mim_jax.config.check import ConfigError, check
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.data import DataError, open_dataset
from mim_jax.methods import build_method, complete_options
from mim_jax.tasks import train
from mim_jax.training.checkpoints import CheckpointError, Checkpoints
from mim_jax.training.pretrained import load_encoder, with_network_of_init
from mim_jax.transfer.per_image import decode_correct, read_correct

pytestmark = pytest.mark.slow

QUICK = {"log.tensorboard": False, "log.every_steps": 5, "checkpoint.every_steps": 100}


def config_of(name: str, init: Path | None, **more: Any):
    values = {**QUICK, **{key.replace("__", "."): value for key, value in more.items()}}
    if init is not None:
        values["init"] = str(init)
    return check(override(load(f"configs/{name}.py"), values))


def last(workdir: Path, key: str) -> float:
    return [line[key] for line in history(workdir) if key in line][-1]


@pytest.fixture(scope="module")
def probed(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("probe")
    config = config_of(
        "linear_probe", finished_run, schedule__epochs=60.0, optim__lr=30.0, eval__every_steps=10_000
    )
    assert train.run(config, workdir) == 0
    return workdir


def test_probe_left_its_metrics_and_its_confusion_matrix(probed: Path) -> None:
    for key in ("eval/loss", "eval/top1", "eval/top5", "eval/mean_per_class", "eval/map_11_point"):
        assert np.isfinite(last(probed, key))
    top1, images = last(probed, "eval/top1"), 360  # a fifth of scikit-learn's digits
    assert last(probed, "eval/top1_stderr") == pytest.approx((top1 * (1 - top1) / images) ** 0.5)
    correct = decode_correct(read_correct(probed)["eval/top1"])
    assert correct.shape == (images,) and float(correct.mean()) == top1
    assert 0.2 < last(probed, "eval/top1") <= last(probed, "eval/top5") <= 1
    page = (probed / "report.html").read_text()
    assert "Confusion matrix" in page and "mean over classes" in page and (probed / "confusion.png").exists()
    with Checkpoints((probed / "checkpoints").absolute()) as checkpoints:
        tree = checkpoints.metadata(checkpoints.steps()[-1])["tree"]
    assert set(tree["batch_stats"]) == {"mean", "variance"}
    assert not tree.get("artefacts")  # features are computed again, not saved


def test_a_stopped_probe_goes_on_bit_for_bit(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(
        "linear_probe", finished_run, schedule__steps=12, schedule__warmup_steps=2, log__every_steps=1
    )
    assert train.run(config, tmp_path / "whole") == 0
    asked = train.Shutdown.requested_at
    monkeypatch.setattr(train.Shutdown, "requested_at", lambda self, step: step >= 5)
    assert train.run(config, tmp_path / "parts") == 75
    monkeypatch.setattr(train.Shutdown, "requested_at", asked)
    assert train.run(config, tmp_path / "parts") == 0
    losses = [
        [line["train/loss"] for line in history(tmp_path / name) if "train/loss" in line]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_fine_tuning_starts_from_the_runs_encoder(finished_run: Path, tmp_path: Path) -> None:
    config = config_of(
        "finetune", finished_run, schedule__steps=6, schedule__warmup_steps=2, data__batch_size=32, optim__accumulation=2,
        optim__ema=0.9, eval__every_steps=6, method__rand_augment=0,
    )  # fmt: skip
    assert train.run(config, tmp_path) == 0
    assert np.isfinite(last(tmp_path, "train/loss"))
    done = json.loads((tmp_path / "config.json").read_text())
    assert (
        done["model"]["layer_scale"] == 0.1
        and done["data"]["source"] == "digits"
        and done["method"]["num_classes"] == 10
    )
    own, donor = mim_jax.load(tmp_path).params, mim_jax.load(finished_run).params
    moved = np.abs(
        np.asarray(own["encoder"]["block_00"]["mlp"]["fc1"]["kernel"])
        - np.asarray(donor["encoder"]["block_00"]["mlp"]["fc1"]["kernel"])
    ).max()
    assert 0 < moved < 0.05
    again = mim_jax.load(tmp_path).features(
        open_dataset("digits", "test").images[:4]
    )  # a classifier has features, too
    assert np.isfinite(np.asarray(again)).all()


def test_sincos_positions_become_learned_ones(tmp_path: Path) -> None:
    donor = check(override(load("configs/mae.py"), {
        **QUICK, "model.variant": "mu", "data.crops_per_picture": 4, "data.batch_size": 24, "schedule.steps": 1,
        "schedule.warmup_steps": 0, "eval.baselines": False, "eval.heldout_examples": 20,
    }))  # fmt: skip
    assert train.run(donor, tmp_path / "mae") == 0
    config = with_network_of_init(config_of("linear_probe", tmp_path / "mae"))
    assert config.model.positions == "learned" and config.model.image_size == (32, 32)
    probe_config = complete_options(
        resolve(config, num_examples=40, num_devices=1, platform="cpu"), classes(10)
    )
    method = build_method(probe_config)
    params = load_encoder(probe_config, method, method.init_params(jax.random.key(0)))
    run = mim_jax.load(tmp_path / "mae")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_allclose(
        method.encode(params, jnp.asarray(images)).pooled(), run.features(images), atol=1e-5
    )


def test_mistakes_are_one_sentence(finished_run: Path, probed: Path, tmp_path: Path) -> None:
    def says(config, words: str) -> None:
        with pytest.raises((ConfigError, DataError, CheckpointError), match=words) as caught:
            train.run(config, tmp_path / "run")
        assert len(str(caught.value).splitlines()) == 1
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    says(config_of("linear_probe", None), "name it, --config.init")
    says(config_of("linear_probe", tmp_path / "nothing"), "holds no run of ours")
    says(config_of("linear_probe", finished_run, method__num_classes=7), "has 10 classes")
    says(
        config_of(
            "linear_probe",
            finished_run,
            data__source="photos",
            data__crops_per_picture=2,
            data__test_split="nowhere",
        ),
        "nowhere",
    )
    broken = tmp_path / "broken"
    shutil.copytree(finished_run, broken)
    text = (broken / "config.json").read_text()
    (broken / "config.json").write_text(re.sub(r'"width": 32', '"width": 64', text))
    says(config_of("linear_probe", broken), "checkpoint")


def test_another_encoder_is_named(finished_run: Path) -> None:
    config = with_network_of_init(config_of("linear_probe", finished_run))
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, width=64, positions="none"))
    full = complete_options(resolve(wider, num_examples=40, num_devices=1, platform="cpu"), classes(10))
    method = build_method(full)
    with pytest.raises(
        ConfigError, match=r"has another encoder: encoder/.* is \[.*32.*\] there and \[.*64.*\] here"
    ):
        load_encoder(full, method, method.init_params(jax.random.key(0)))


def test_features_that_are_no_numbers(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mim_jax.methods.classify import Classify

    monkeypatch.setattr(
        Classify, "features", lambda self, params, patches: jnp.full((len(patches), 32), jnp.nan)
    )
    with pytest.raises(ConfigError, match="not finite"):
        train.run(config_of("linear_probe", finished_run), tmp_path)
