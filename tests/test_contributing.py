"""The examples of CONTRIBUTING.md are whole: as they stand there, they build, train a step's worth and load."""

import importlib.util
import re
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import batch, keys

from mim_jax.config.check import check
from mim_jax.config.resolve import resolve
from mim_jax.data import DataError, ImageView, Loader
from mim_jax.data.crop import NoCrop
from mim_jax.data.examples import ArrayImage, Example
from mim_jax.methods import METHODS, Variables, build_method, complete_options
from mim_jax.targets.pixels import patchify
from tests.conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
FILES = {
    block.splitlines()[0].removeprefix("# "): block
    for block in BLOCKS
    if re.match(r"# (mim_jax|configs)/\S+\.py\n", block)
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    """Makes the module of a file as it stands in the document, and gives it."""

    def make(path: str) -> ModuleType:
        name = path.removesuffix(".py").replace("/", ".")
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader=None))
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(FILES[path], path, "exec"), module.__dict__)
        return module

    return make


@pytest.mark.slow
def test_the_method(example, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered by the line that the document gives, built from its configuration, and it scores what it says."""
    example("mim_jax/targets/colour.py")
    page = example("mim_jax/methods/hidden_colour.py")
    (line,) = (block for block in BLOCKS if block.startswith('    "hidden_colour": '))
    for name, entry in eval(f"{{{line}}}", {"hidden_colour": page}).items():
        monkeypatch.setitem(METHODS, name, entry)
    config = check(example("configs/hidden_colour.py").get_config())
    config = complete_options(resolve(config, num_examples=64, num_devices=1, platform="cpu"))
    method = build_method(config)
    images = batch(4, size=8)
    params = method.init_params(jax.random.key(0))
    view = method.corrupt(keys(4), images, Variables())
    colours = patchify(jnp.asarray(images["image"] / 255.0), 2).reshape(4, 16, 4, 3).mean(axis=2)
    expected = np.take_along_axis(np.asarray(colours), np.asarray(view["hidden"])[..., None], axis=1)
    np.testing.assert_allclose(view["colours"], expected, atol=1e-6)
    outputs = method.forward(Variables(params), view, keys(4), False)
    total, count = method.loss(outputs, view)["loss"]
    np.testing.assert_allclose(total, np.abs(outputs["colours"] - expected).sum((1, 2)), rtol=1e-5)
    assert count.tolist() == [12 * 3] * 4 and method.flops() > 0


def test_the_dataset(example, tmp_path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    open_npy = example("mim_jax/data/datasets/npy.py").open_npy
    train, test = (open_npy(str(tmp_path / "images.npy"), split) for split in ("train", "test"))
    np.testing.assert_array_equal(np.concatenate([train.images, test.images]), images)
    assert len(test) == 3 and train.annotation is train[0].annotation is None
    with pytest.raises(DataError, match="There is no file"):
        open_npy(str(tmp_path / "none.npy"), "train")
    assert any('    elif kind == "npy":\n        dataset = open_npy(rest, split)\n' in b for b in BLOCKS)


def test_the_view_of_an_annotation_of_ones_own(example) -> None:
    captions = example("mim_jax/data/views/captions.py")

    class Captioned:
        name, num_classes, class_names, fingerprint, annotation = "c", 0, (), "0", captions.Caption

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Example:
            image = ArrayImage(np.full((4, 4, 3), index, np.uint8))
            return Example(image, captions.Caption(((7,), (1, 2, 3, 4))[index]))

    dataset = Captioned()
    view = captions.CaptionView(ImageView((4, 4), NoCrop()), 3)
    with Loader(dataset, view, batch_size=2, seed=0) as loader:
        made = loader.batch(0)
    expected = np.array([[7, 0, 0], [1, 2, 3]], np.int32)[made["index"]]
    np.testing.assert_array_equal(made["caption"], expected)
    assert made["caption"].dtype == np.int32
    dataset.annotation = None
    with pytest.raises(DataError, match="has no captions"):
        Loader(dataset, view, batch_size=2, seed=0)
