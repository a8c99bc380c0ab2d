"""A TFDS data set in ArrayRecord, built and read without TensorFlow."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

tfds = pytest.importorskip("tensorflow_datasets")

from mim_jax.data import (  # noqa: E402
    ClassLabel,
    ClassLabels,
    ClassLabelsView,
    DataError,
    ImageView,
    Loader,
    open_dataset,
)
from mim_jax.data.crop import RandomResizedCrop, Squash  # noqa: E402
from mim_jax.data.examples import class_index  # noqa: E402

COUNTS = {"train": 12, "test": 5}


def picture(split, number):
    pixels = np.random.default_rng([len(split), number]).integers(
        0, 256, (10 + number, 14, 3), dtype=np.uint8
    )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return pixels, stream.getvalue()


def build(data_dir, dataset, labelled_test=True):
    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        name = dataset  # TFDS registers each name once.

        def _info(self):
            label = tfds.features.ClassLabel(names=["ant", "bee", "cow"])
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            splits = {split: self._generate_examples(split) for split in COUNTS}
            return splits | ({} if labelled_test else {"validation": self._generate_examples("validation")})

        def _generate_examples(self, split):
            for number in range(COUNTS.get(split, 4)):
                label = number % 3 if labelled_test or split != "test" else -1
                yield number, {"image": io.BytesIO(picture(split, number)[1]), "label": label}

    Tiny(data_dir=str(data_dir), file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    build(path, "tiny_pictures")
    return str(path)


def test_images_and_labels_come_back(data_dir):
    for split, count in COUNTS.items():
        dataset = open_dataset("tfds:tiny_pictures", split, data_dir=data_dir)
        assert (len(dataset), dataset.class_names, dataset.num_classes) == (count, ("ant", "bee", "cow"), 3)
        expected = {picture(split, number)[0].tobytes(): number % 3 for number in range(count)}
        examples = [dataset[i] for i in range(count)]
        assert {e.image.pixels().tobytes(): e.annotation.index for e in examples} == expected
        assert dataset.annotation is ClassLabel
        image = dataset[0].image
        assert image.pixels().shape[:2] == (image.height, image.width)
    assert "tensorflow" not in sys.modules or not hasattr(sys.modules["tensorflow"], "Graph")


def test_version_and_fingerprint(data_dir):
    named = open_dataset("tfds:tiny_pictures:1.2.0", "train", data_dir=data_dir)
    plain, test = (open_dataset("tfds:tiny_pictures", split, data_dir=data_dir) for split in COUNTS)
    assert named.fingerprint == plain.fingerprint != test.fingerprint
    assert "12 images, 3 classes" in plain.describe()


def test_the_loader_reads_it_from_threads(data_dir):
    dataset = open_dataset("tfds:tiny_pictures", "train", data_dir=data_dir, on_bad_image="skip")
    view = ImageView((8, 8), RandomResizedCrop())
    with (
        Loader(dataset, view, batch_size=8, seed=0, threads=4) as many,
        Loader(dataset, view, batch_size=8, seed=0, threads=1) as one,
    ):
        for step in range(4):
            np.testing.assert_array_equal(many.batch(step)["image"], one.batch(step)["image"])


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path):
    build(tmp_path, "half_labelled", labelled_test=False)
    dataset = open_dataset("tfds:half_labelled", "test", data_dir=str(tmp_path))
    assert len(dataset) == 4 and dataset[1].annotation.index >= 0


def test_what_is_missing_is_said_with_the_command(data_dir, tmp_path):
    cases = [
        ("tfds:cifar10", data_dir, r"holds tiny_pictures, but no cifar10"),
        ("tfds:cifar10", str(tmp_path / "none"), r"there is no folder"),
        ("tfds:cifar10", str(tmp_path), r"holds nothing, but no cifar10"),
        ("tfds:tiny_pictures:3.0.0", data_dir, r"holds the versions 1\.2\.0, but not 3\.0\.0"),
    ]
    for name, where, says in cases:
        with pytest.raises(DataError, match=f"{says}.*file_format='array_record'.*download_and_prepare"):
            open_dataset(name, "train", data_dir=where)
    (tmp_path / "half" / "1.0.0").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no prepared version"):
        open_dataset("tfds:half", "train", data_dir=str(tmp_path))


def test_another_file_format_is_refused_in_words(data_dir, tmp_path):
    shutil.copytree(Path(data_dir) / "tiny_pictures", tmp_path / "tiny_pictures")
    info = tmp_path / "tiny_pictures" / "1.2.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match="in the format tfrecord, which needs TensorFlow"):
        open_dataset("tfds:tiny_pictures", "train", data_dir=str(tmp_path))


def test_a_missing_or_damaged_file_is_named(data_dir, tmp_path):
    shutil.copytree(Path(data_dir) / "tiny_pictures", tmp_path / "tiny_pictures")
    (file,) = (tmp_path / "tiny_pictures" / "1.2.0").glob("*-train.array_record*")
    whole = file.read_bytes()
    file.write_bytes(whole[:3000] + bytes(3000) + whole[6000:])
    dataset = open_dataset("tfds:tiny_pictures", "train", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        [dataset[index].image.pixels() for index in range(12)]
    file.unlink()
    with pytest.raises(DataError, match=r"train\.array_record.* is missing"):
        open_dataset("tfds:tiny_pictures", "train", data_dir=str(tmp_path))


def several(data_dir):
    """A data set of VOC's shape: sets of labels, some of them difficult, and three splits."""

    class TinyVoc(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = "tiny_voc"

        def _info(self):
            names = tfds.features.ClassLabel(names=["ant", "bee", "cow"])
            sets = {key: tfds.features.Sequence(names) for key in ("labels", "labels_no_difficult")}
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(), **sets})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

        def _generate_examples(self, split):
            for number in range(6):
                shown = [c for c in range(3) if (number + 1) >> c & 1]
                image = io.BytesIO(picture(split, number)[1])
                yield number, {"image": image, "labels": shown, "labels_no_difficult": shown[:1]}

    TinyVoc(data_dir=str(data_dir), file_format="array_record").download_and_prepare()


def test_several_labels_an_image_and_joined_splits(tmp_path):
    several(tmp_path)
    dataset = open_dataset("tfds:tiny_voc", "train+validation", data_dir=str(tmp_path), on_bad_image="skip")
    parts = [
        open_dataset("tfds:tiny_voc", split, data_dir=str(tmp_path)) for split in ("train", "validation")
    ]
    assert len(dataset) == 12 and dataset.annotation is ClassLabels and dataset.num_classes == 3
    assert class_index(dataset[0].annotation) == -1
    for number in range(12):
        expected = parts[number // 6][number % 6].annotation.shown
        np.testing.assert_array_equal(dataset[number].annotation.shown, expected)
    examples = [parts[0][n] for n in range(6)]
    of = {e.image.pixels().tobytes(): e.annotation.shown.tolist() for e in examples}
    # an ant, and a bee of which only a difficult one
    assert of[picture("train", 2)[0].tobytes()] == [1, -1, 0]
    for image in (ImageView((8, 8), Squash()), None):
        with Loader(dataset, ClassLabelsView(image, 3), batch_size=12, seed=0) as loader:
            batch = loader.batch(0)
        shown = [dataset[int(i)].annotation.shown for i in batch["index"]]
        np.testing.assert_array_equal(batch["labels"], shown)
        assert batch["labels"].dtype == np.int8 and ("image" in batch) == (image is not None)
    with pytest.raises(DataError, match="has the splits train, validation, test, but none for dev"):
        open_dataset("tfds:tiny_voc", "dev", data_dir=str(tmp_path))
