"""What the evaluator of classifiers counts."""

from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType

from mim_jax.methods import Variables
from mim_jax.transfer.classification import Classification


def test_several_labels_per_image_need_no_single_one(tmp_path: Path) -> None:
    """Batches of ClassLabelsView have `labels` and no `label`; padding does not count."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    labels = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], np.int8)
    batch = {
        "image": labels.astype(np.float32),
        "labels": labels,
        "valid": np.array([True, True, True, False]),
    }
    evaluate = Classification(
        lambda variables, images: images, lambda: [batch], class_names=("a", "b"), workdir=tmp_path, mesh=mesh
    )
    assert evaluate(Variables(), baselines=False) == {"eval/map_11_point": 1.0}
