"""mim_jax.load: a network from its work directory alone, its features, and what is refused in one sentence."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small import images
from tiny import STEPS

import mim_jax
from mim_jax.config.check import ConfigError
from mim_jax.training.checkpoints import CheckpointError, Checkpoints

pytestmark = pytest.mark.slow

SIZE = 8  # of digits


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Loaded from a copy that holds nothing but config.json and the checkpoints."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(finished_run / "config.json", copy)
    shutil.copytree(finished_run / "checkpoints", copy / "checkpoints")
    return mim_jax.load(copy)


def saved(workdir: Path, part: str, step: int) -> dict[str, np.ndarray]:
    """Arrays of a checkpoint by name, read without the library."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        tree = {part: checkpoints.metadata(step)["tree"][part]}
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), tree)
        _, restored = checkpoints.restore_partial(abstract, step)
    return named(restored[part])


def named(tree: Any) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_parameters_are_those_of_the_checkpoint(run: Any, finished_run: Path) -> None:
    assert run.step == STEPS and run.config.method["name"] == "mapet"
    assert_same(named(run.params), saved(finished_run, "params", STEPS))
    early = mim_jax.load(finished_run, step=3)
    assert early.step == 3
    assert_same(named(early.params), saved(finished_run, "params", 3))
    averaged = mim_jax.load(finished_run, ema=True)
    assert_same(named(averaged.params), saved(finished_run, "ema", STEPS))
    kernel = next(name for name in named(run.params) if name.endswith("['kernel']"))
    assert np.any(named(run.params)[kernel] != named(averaged.params)[kernel])


def test_features_are_the_encoders(run: Any) -> None:
    batch = images(5, SIZE)
    made = run.method.encode(run.params, jax.numpy.asarray(batch))
    patches = np.asarray(made.final)[:, made.prefix :]
    features = run.features(batch)
    assert features.shape == (5, run.method.vit.width) and features.dtype == np.float32
    np.testing.assert_allclose(features, patches.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.features(batch, pool="cls"), made.final[:, 0], rtol=1e-5, atol=1e-6)
    block = np.asarray(made.layers[0])[:, made.prefix :].mean(1)
    np.testing.assert_allclose(run.features(batch, layer=0), block, rtol=1e-5, atol=1e-6)
    assert np.abs(block - patches.mean(1)).max() > 1e-3


def test_forms_of_the_same_images(run: Any) -> None:
    batch = images(3, SIZE)
    expected = run.features(batch)
    for same in (batch / 255.0, (batch / 255.0).astype(np.float32), jax.numpy.asarray(batch), batch.tolist()):
        if isinstance(same, list):  # a list of Python numbers is int64: not taken for uint8
            with pytest.raises(ValueError, match="uint8"):
                run.features(same)
            continue
        np.testing.assert_allclose(run.features(same), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.features(batch[1]), expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (
            lambda run: run.features(images(2, 12)[:, 1:]),
            r"multiples of the patch of \d px, got \[2, 11, 12, 3\]",
        ),
        (lambda run: run.features(images(2, SIZE)[..., :1]), r"got \[2, 8, 8, 1\]"),
        (lambda run: run.features(images(2, SIZE)[:0]), r"got \[0, 8, 8, 3\]"),
        (lambda run: run.features(images(2, SIZE).astype(np.int32)), r"uint8 .* got int32"),
        (lambda run: run.features(images(2, SIZE).astype(np.float32)), r"\[0, 1\], got values from .* to 2"),
        (lambda run: run.features(np.full((SIZE, SIZE, 3), np.nan)), r"\[0, 1\], got values from nan"),
        (lambda run: run.features(images(1, SIZE), layer=2), r"layer must be -1 .* 0\.\.1, got 2"),
        (lambda run: run.features(images(1, SIZE), pool="max"), r"pool must be mean or cls, got 'max'"),
    ],
)
def test_wrong_input_is_one_sentence(run: Any, use: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        use(run)
    assert len(str(caught.value).splitlines()) == 1


def test_what_cannot_be_loaded(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run of ours"):
        mim_jax.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=re.escape("5")):
        mim_jax.load(finished_run, step=5)
    shutil.copy(finished_run / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        mim_jax.load(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"ema": 0.5', '"ema": 0.0'))
    with pytest.raises(ValueError, match="keeps no moving average"):
        mim_jax.load(tmp_path, ema=True)
    (tmp_path / "config.json").write_text(text[:100])
    with pytest.raises(ConfigError, match="is damaged"):
        mim_jax.load(tmp_path)


def test_a_given_sharding(finished_run: Path) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    run = mim_jax.load(finished_run, sharding=everywhere)
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(run.params))
    alone = mim_jax.load(finished_run)
    batch = images(2, SIZE)
    np.testing.assert_allclose(run.features(batch), alone.features(batch), rtol=1e-5, atol=1e-6)


def test_importing_the_package_stays_light() -> None:
    code = (
        "import sys, mim_jax; assert not {'jax', 'flax', 'numpy'} & set(sys.modules); print(mim_jax.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "load" in done.stdout, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        getattr(mim_jax, "lode")  # noqa: B009


def test_the_examples_of_the_documentation_run(finished_run: Path) -> None:
    text = (
        (Path(__file__).parents[1] / "docs" / "library.md")
        .read_text()
        .replace("runs/mapet-demo", str(finished_run))
    )
    names: dict[str, Any] = {"images": images(4, SIZE)}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    shapes = {
        name: names[name].shape
        for name in ("features", "half", "hidden", "visible", "content", "query", "canvas")
    }
    assert shapes == dict(
        features=(4, 32), half=(32,), hidden=(4, 12), visible=(4, 4), content=(29, 29), query=(12, 29), canvas=(4, 12, 12, 3)
    )  # fmt: skip
    assert (names["last"].stride, names["last"].features.shape) == (2, (4, 4, 8, 32))
    for name in ("small", "bent", "halved", "blurred", "grey", "jittered", "canvas"):
        assert np.all(np.isfinite(names[name])), name
    assert names["blocks"].sum(1).tolist() == [24] * 4 and names["mask"].sum(1).tolist() == [12] * 4
    np.testing.assert_array_equal(names["grey"][..., 0], names["grey"][..., 2])
    modules = {path.stem for path in Path(mim_jax.__path__[0], "corruptions").glob("[a-z]*.py")}
    assert all(re.search(rf"\b{module}\.", text) for module in modules), modules  # every op has its lines


def test_a_run_is_shown_in_three_lines(finished_run: Path) -> None:
    lines = repr(mim_jax.load(finished_run)).splitlines()
    assert len(lines) == 3 and max(map(len, lines)) < 120
    assert "mapet on digits, after 6 updates" in lines[0] and "images 8 x 8" in lines[1]
