"""A user's own images: presets fit them, and those made for many images scale down instead of refusing few."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from small import classes

from mim_jax.config.check import check
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.config.scaling import chosen
from mim_jax.config.schema import Config
from mim_jax.data import open_dataset
from mim_jax.data.memory import median_side
from mim_jax.methods import Method, build_method, complete_options, completion_lines
from mim_jax.training.budget import check_memory

METHODS = ("mae", "simmim", "beit", "mapet", "beyond_masking", "amt", "supervised")


def made(
    spec: str, count: int, side: int = 80, platform: str = "cpu", devices: int = 1, **more: Any
) -> tuple[Method, Config, list[str]]:
    """What `train.run` builds of a configuration for so many pictures, and the lines it prints."""
    asked = check(override(load(spec), {key.replace("__", "."): value for key, value in more.items()}))
    config = resolve(asked, num_examples=count, num_devices=devices, platform=platform, image_side=side)
    completed = complete_options(config, classes(2))
    method = build_method(completed)
    check_memory(completed, method, method.view(train=True))
    lines = [*chosen(asked, config, count, side), *completion_lines(config, completed), *method.notes]
    return method, completed, lines


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("count", "side"), [(9, 20), (1600, 80), (1_000_000, 400)])
def test_own_fits_any_folder(name: str, count: int, side: int) -> None:
    method, config, lines = made(f"{name}:own", count, side)
    assert config.data.batch_size == min(64, count)
    assert config.model.variant == "nano" and method.net.grid == (8, 8)
    assert method.net.image_size[0] == (32 if side < 48 else 64)
    assert config.schedule.warmup_steps == round(0.05 * config.schedule.steps)
    assert any("model.variant=nano" in line for line in lines) and any("warm-up" in line for line in lines)
    assert any("batch_size=9 instead of 64" in line for line in lines) == (count == 9)
    if name == "amt":
        assert [phase.first_epoch for phase in method.phases] == [0, 11] and "method.start=10" in lines


@pytest.mark.parametrize("name", METHODS)
def test_own_on_an_accelerator(name: str) -> None:
    method, config, _ = made(f"{name}:own", 300_000, 250, platform="gpu", devices=8)
    assert config.model.variant == "s" and method.net.image_size == (224, 224)
    assert method.net.patch == 16 and config.data.batch_size % 8 == 0


@pytest.mark.parametrize("name", METHODS)
def test_recipes_for_many_images_take_few(name: str) -> None:
    """Once: 1,600 images of another size for 5 epochs, the model made smaller."""
    method, config, lines = made(
        f"{name}:cifar10", 1600, model__variant="nano", model__image_size=64, model__patch=8, schedule__epochs=5,
    )  # fmt: skip
    assert config.schedule.warmup_steps <= config.schedule.steps // 2
    assert any("is longer than it" in line for line in lines)
    if name == "amt":
        assert [phase.first_epoch for phase in method.phases] == [0, 1]
        assert "method.start=0, for 40 does not fit this run" in lines
    if name == "beyond_masking":
        assert method.source_side == 80


def test_zoom_follows_the_ratio() -> None:
    for side, patch, task, wanted in (
        (224, 16, "zoom_in", 288), (224, 16, "zoom_out", 160), (64, 8, "zoom_in", 82), (64, 8, "zoom_out", 46),
    ):  # fmt: skip
        given = {"method__task": task, "model__image_size": side, "model__patch": patch}
        method, _, lines = made("beyond_masking:own", 500, **given)
        assert method.source_side == wanted
        assert any("the nearest to" in line for line in lines) == (side == 64)


def test_a_recipe_is_not_changed_where_it_fits() -> None:
    for spec, count in (
        ("amt:imagenet", 1_281_167),
        ("mae:imagenet", 1_281_167),
        ("beyond_masking:imagenet", 1_281_167),
    ):
        _, _, lines = made(spec, count)
        assert lines == []
    amt, _, _ = made("amt:imagenet", 1_281_167)
    assert [phase.first_epoch for phase in amt.phases] == [0, 41]
    assert [epoch for epoch in range(400) if amt.refreshes[0].due(epoch)] == list(range(40, 400, 40))


def test_the_pictures_tell_their_size(tmp_path: Path) -> None:
    for number, size in enumerate([(60, 90), (70, 60), (200, 60)]):
        pixels = np.zeros((*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    assert median_side(open_dataset(f"folder:{tmp_path}", "train")) == 60


def test_shapes_follow() -> None:
    """What was chosen is a network that can be built."""
    method, _, _ = made("mae:own", 40)
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    assert shapes["encoder"]["patch_embed"]["kernel"].shape == (3 * 8 * 8, 96)
