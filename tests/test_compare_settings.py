"""What a comparison takes: its data, its arms, mistakes in either; and when a difference counts as noise."""

from pathlib import Path

import pytest
from PIL import Image

from mim_jax.compare.__main__ import run
from mim_jax.compare.noise import Summary, decimals, judge
from mim_jax.compare.protocol import Column, read_protocol
from mim_jax.compare.stages import cell, pretraining
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
    protocol = read_protocol(override(load("configs/compare.py"), {"data": str(tmp_path)}))
    assert protocol.shared["data.source"] == f"folder:{tmp_path}"


def test_data_without_classes_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(ConfigError, match="have no classes, which probe and finetune need"):
        read_protocol(override(load("configs/compare.py"), {"data": str(tmp_path)}))


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
    "jobs": (["--jobs=0"], "--jobs=0"),
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
    protocol = read_protocol(config)
    arms, start, finetuned = SHIPPED[preset]
    assert set(protocol.arms) >= arms
    networks = set()
    for arm in protocol.arms:
        stages = cell(protocol, arm, 0, pretraining(protocol, arm), tmp_path)
        assert [stage.name for stage in stages] == ["pretrain", "probe", "finetune"][: 2 + finetuned]
        job = stages[0].job
        made = resolve(
            check(override(load(job.file), job.settings)), num_examples=2000, num_devices=1, platform="cpu"
        )
        method = build_method(complete_options(made, 10))
        assert made.data.source == f"folder:{tmp_path}"
        networks.add((method.vit.width, method.vit.depth, method.vit.num_patches, made.data.batch_size))
        if arm == "random":
            assert made.schedule.steps == 1 and made.optim.lr == 0.0
        elif arm == "amt":
            assert [phase.first_epoch for phase in method.phases] == [0, start + 1]
    assert len(networks) == 1


JUDGED: dict[str, tuple[str, dict[str, Summary], str]] = {
    "lower": (
        "lower",
        {"a": Summary(1.0, 0.1, 3), "b": Summary(2.0, 0.1, 3)},
        "a has the best mean; nothing",
    ),
    "touching": (
        "higher",
        {"a": Summary(1.0, 0.5, 2), "b": Summary(2.0, 0.5, 2)},
        "noise of it: a (1.00 apart",
    ),
    "few images": (
        "higher",
        {"a": Summary(30.0, 0.4, 2, 2.0), "b": Summary(32.0, 0.1, 2, 2.0)},
        "inside the noise of it: a (2.00 apart, noise 3.33",
    ),
    "one seed": ("higher", {"a": Summary(1.0, 0.0, 1), "b": Summary(2.0, 0.5, 2)}, "nothing can be said"),
}


@pytest.mark.parametrize("name", JUDGED)
def test_noise(name: str) -> None:
    better, summaries, want = JUDGED[name]
    assert want in judge(Column("quality", "probe", "eval/top1", better), summaries)


@pytest.mark.parametrize(("value", "shown"), [(0.012, 4), (1.5, 2), (99.0, 2), (250.0, 1), (-4000.0, 0)])
def test_decimals(value: float, shown: int) -> None:
    assert decimals([value, 0.001]) == shown


def test_arms_of_finished_runs() -> None:
    """A study's arms, once for each run: the surgery sweep and the transfer sets, every one a configuration that builds."""
    runs = {"runs": "runs/simmim-cifar10,elsewhere/vit.safetensors"}
    protocol = read_protocol(override(load("configs/surgery.py"), runs))
    assert len(protocol.arms) == 14 and "reinit4-simmim-cifar10" in protocol.arms
    spec = protocol.arms["reinit4-vit.safetensors"]
    config = check(load(spec))
    assert (config.init, config.surgery.mode, config.surgery.blocks) == (
        "elsewhere/vit.safetensors",
        "reinit",
        4,
    )
    assert check(load(protocol.arms["reinit0-simmim-cifar10"])).surgery.mode == "none"
    transfer = read_protocol(override(load("configs/transfer.py"), runs))
    voc = check(load(transfer.arms["voc2007-simmim-cifar10"]))
    assert (voc.data.source, voc.data.split, voc.method["mixup"]) == (
        "tfds:voc/2007",
        "train+validation",
        0.0,
    )
    assert len(transfer.arms) == 26
    for wrong, says in (({}, "config.runs is empty"), ({"runs": "a/x,b/x"}, "the same last name")):
        with pytest.raises(ConfigError, match=says):
            read_protocol(override(load("configs/surgery.py"), wrong))
