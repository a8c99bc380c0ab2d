"""How well a classifier does on held-out images: `eval/top1` and its relatives."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from etils.epath import Path

from mim_jax.transfer.confusion import draw_confusion
from mim_jax.transfer.gathering import gather_rows
from mim_jax.transfer.metrics import (
    STANDARD_ERROR,
    eleven_point_map,
    mean_per_class,
    standard_error,
    top_k,
    top_k_correct,
)
from mim_jax.transfer.per_image import write_correct

CONFUSION = "confusion.png"


class Classification:
    """Metrics over all held-out images with a label. scores: (variables, images) -> logits [B, classes]."""

    name = "classification"

    def __init__(
        self,
        scores: Callable[[Any, jax.Array], jax.Array],
        batches: Callable[[], Iterable[Mapping[str, Any]]],
        *,
        class_names: tuple[str, ...],
        workdir: Path,
        mesh: jax.sharding.Mesh,
    ) -> None:
        self._batches, self._names, self._workdir = batches, class_names, workdir
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._scores = jax.jit(
            lambda variables, batch: scores(variables, batch["image"]), out_shardings=replicated
        )

    def __call__(self, variables: Any, *, baselines: bool) -> dict[str, float]:
        """Loss, top-1 and its standard error, top-5, mean per class and 11-point mAP; draws the confusion matrix.

        With `baselines` also the top-1 of always naming the commonest held-out class. With several labels an image: the
        mAP alone.
        """
        found, known = [], []
        for batch in self._batches():
            many = "labels" in batch
            labels = gather_rows(batch["labels" if many else "label"])
            keep = gather_rows(batch["valid"]).astype(bool)
            keep = keep if many else keep & (labels >= 0)
            found.append(np.asarray(self._scores(variables, batch))[keep])
            known.append(labels[keep])
        scores, labels = np.concatenate(found), np.concatenate(known)
        if labels.ndim == 2:
            return {"eval/map_11_point": eleven_point_map(scores, labels == 1, labels >= 0)}
        if jax.process_index() == 0:
            draw_confusion(self._workdir / CONFUSION, scores, labels, self._names)
        correct = top_k_correct(scores, labels, 1)
        write_correct(self._workdir, {"eval/top1": correct})
        top1 = float(np.mean(correct))
        commonest = float(np.bincount(labels).max() / len(labels))
        return {
            "eval/loss": float(optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()),
            "eval/top1": top1,
            f"eval/top1{STANDARD_ERROR}": standard_error(top1, len(labels)),
            "eval/top5": top_k(scores, labels, 5),
            "eval/mean_per_class": mean_per_class(scores, labels),
            "eval/map_11_point": eleven_point_map(scores, labels[:, None] == np.arange(scores.shape[1])),
            **({"eval/commonest_class_top1": commonest} if baselines else {}),
        }
