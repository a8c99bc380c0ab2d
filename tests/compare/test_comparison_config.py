"""The configuration of a comparison: its data, its arms, and mistakes in either."""

from pathlib import Path

import pytest
from PIL import Image
from small import classes

from mim_jax.compare.__main__ import run
from mim_jax.compare.config import check_comparison
from mim_jax.compare.stages import cell_stages, pretraining
from mim_jax.config.check import ConfigError, check
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.methods import build_method, complete_options

pytestmark = pytest.mark.slow


def image_folders(root: Path, parts: tuple[str, ...] = ("train", "test")) -> None:
    """An image of each of two classes in every part."""
    for part in parts:
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / part / name / "1.png")


@pytest.mark.parametrize("parts", [("train", "val"), ("training", "validation"), ("",)])
def test_data_is_what_the_source_folder_takes(parts: tuple[str, ...], tmp_path: Path) -> None:
    """One rule for splits: where folder:PATH holds out val, or a tenth, a comparison does."""
    image_folders(tmp_path, parts)
    comparison = check_comparison(override(load("configs/compare.py"), {"data": str(tmp_path)}))
    assert comparison.shared["data.source"] == f"folder:{tmp_path}"


def test_data_without_classes_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(ConfigError, match="have no classes, which probe and finetune need"):
        check_comparison(override(load("configs/compare.py"), {"data": str(tmp_path)}))


MISTAKES: dict[str, tuple[list[str], str]] = {
    "missing data": (["--config.data=/nowhere"], "The image folder /nowhere does not exist"),
    "no data": ([], "config.data is empty"),
    "unknown key": (["--config.seds=1"], "seds"),
    "unknown arm": (["--config.only=maee", "--config.data={data}"], "did you mean mae?"),
    "shared key": (
        ["--config.shared.optim.lrr=1", "--config.data={data}"],
        "config.arms.random: unknown key config.optim.lrr; did you mean config.optim.lr?",
    ),
    "budget": (["--config.budget=time", "--config.data={data}"], "config.budget is 'time'"),
    "stray argument": (["--confg.data=x"], "--confg.data=x"),
    "jobs": (["--jobs=0"], "--jobs: 0 must be a whole number of at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, want = MISTAKES[name]
    image_folders(tmp_path / "data")
    filled = [argument.replace("{data}", str(tmp_path / "data")) for argument in arguments]
    assert run(["--config=configs/compare.py", f"--workdir={tmp_path / 'never'}", *filled]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and want in error and not (tmp_path / "never").exists()


METHODS = {"random", "supervised", "mae", "simmim", "mim", "pim", "mapet", "amt"}
CONTROLS = {"random", "mae", "random_throw", "amt", "official_corner", "am", "shuffled_bank"}
SHIPPED = {  # preset -> arms, the start of AMT's attention in epochs, whether it fine-tunes
    "demo": (METHODS, 1, True),
    "cifar10_mini": (METHODS, 1, True),
    "cifar10": (METHODS, 10, True),
    "amt": (CONTROLS, 10, True),
    "amt_small": (CONTROLS, 0, False),
}


@pytest.mark.parametrize("preset", SHIPPED)
def test_shipped_comparisons_can_be_built(preset: str, tmp_path: Path) -> None:
    """Every arm's method takes its settings, and all have the same network and batch."""
    image_folders(tmp_path)
    config = override(load(f"configs/compare.py:{preset}"), {"data": str(tmp_path)})
    comparison = check_comparison(config)
    arms, start, finetuned = SHIPPED[preset]
    assert set(comparison.arms) >= arms
    networks = set()
    for arm in comparison.arms:
        stages = cell_stages(comparison, arm, 0, pretraining(comparison, arm), tmp_path)
        assert [stage.name for stage in stages] == ["pretrain", "probe", "finetune"][: 2 + finetuned]
        run_spec = stages[0].run
        made = resolve(
            check(override(load(run_spec.file), run_spec.settings)),
            num_examples=2000,
            num_devices=1,
            platform="cpu",
        )
        method = build_method(complete_options(made, classes(10)))
        assert made.data.source == f"folder:{tmp_path}"
        networks.add((method.net.width, method.net.depth, method.net.num_patches, made.data.batch_size))
        if arm == "random":
            assert made.schedule.steps == 1 and made.optim.lr == 0.0
        elif arm == "amt":
            assert [phase.first_epoch for phase in method.phases] == [0, start + 1]
    assert len(networks) == 1


def test_arms_of_finished_runs() -> None:
    """A study's arms, once for each run: the surgery sweep and the transfer sets, every one a configuration that builds."""
    runs = {"runs": "runs/simmim-cifar10,elsewhere/vit.safetensors"}
    comparison = check_comparison(override(load("configs/surgery.py"), runs))
    assert len(comparison.arms) == 14 and "reinit4-simmim-cifar10" in comparison.arms
    spec = comparison.arms["reinit4-vit.safetensors"]
    config = check(load(spec))
    assert (config.init, config.surgery.mode, config.surgery.blocks) == (
        "elsewhere/vit.safetensors",
        "reinit",
        4,
    )
    assert check(load(comparison.arms["reinit0-simmim-cifar10"])).surgery.mode == "none"
    transfer = check_comparison(override(load("configs/transfer.py"), runs))
    voc = check(load(transfer.arms["voc2007-simmim-cifar10"]))
    assert (voc.data.source, voc.data.split, voc.method["mixup"]) == (
        "tfds:voc/2007",
        "train+validation",
        0.0,
    )
    assert len(transfer.arms) == 26
    for wrong, says in (({}, "config.runs is empty"), ({"runs": "a/x,b/x"}, "the same last name")):
        with pytest.raises(ConfigError, match=says):
            check_comparison(override(load("configs/surgery.py"), wrong))
