"""Examples into the arrays of a batch: the work of one decoding thread, and the short cut for arrays in
memory."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mim_jax.data.crop import box_for, flip_for, render
from mim_jax.data.datasets.base import NO_LABEL, ArrayDataset, Dataset
from mim_jax.data.errors import DataError
from mim_jax.data.spec import Array, Index, InputSpec

Extras = Mapping[str, Callable[[Index], Array]]


@dataclass(frozen=True)
class Request:
    """What a batch is to hold: int64 [B] each, and bool [B]; seed: of crops and flips."""

    index: Index
    draw: Index
    valid: np.ndarray
    seed: int


def allocate(request: Request, spec: InputSpec, extras: Extras, dataset: Dataset) -> dict[str, np.ndarray]:
    """The batch with all keys, of which `fill` writes image, box, flip, label and labels."""
    size = len(request.index)
    batch: dict[str, np.ndarray] = {
        "image": np.empty((size, *(spec.size if spec.pixels else (0, 0)), 3), np.uint8),
        "index": request.index.astype(np.int32),
        "draw": request.draw.astype(np.int32),
        "box": np.tile(np.array([0, 0, 1, 1], np.float32), (size, 1)),
        "flip": np.zeros(size, bool),
        "label": np.full(size, NO_LABEL, np.int32),
        "valid": request.valid,
    }
    if spec.teacher:
        batch["teacher"] = np.empty((size, *spec.teacher, 3), np.uint8)
    if "labels" in spec.extras:
        batch["labels"] = np.empty((size, dataset.num_classes), np.int8)
    return batch | {name: np.asarray(extras[name](request.index)) for name in spec.extras if name in extras}


def fill(
    batch: dict[str, np.ndarray], rows: deque[int], request: Request, dataset: Dataset, spec: InputSpec
) -> None:
    """Takes rows from `rows` and writes them, until none is left; threads may share one `rows`."""
    while True:
        try:
            row = rows.popleft()
        except IndexError:
            return
        index, draw = int(request.index[row]), int(request.draw[row])
        picture = dataset[index]
        height, width = picture.height, picture.width
        box = box_for(spec, height, width, seed=request.seed, draw=draw, index=index)
        if spec.pixels:
            pixels = picture.pixels()
            batch["image"][row] = render(pixels, spec, box)
            if spec.teacher:
                batch["teacher"][row] = render(pixels, spec.for_teacher(), box)
        batch["box"][row] = box.normalised(height, width)
        batch["flip"][row] = flip_for(spec, seed=request.seed, draw=draw, index=index)
        batch["label"][row] = picture.label
        if "labels" in batch:
            batch["labels"][row] = picture.labels


def is_all_served(spec: InputSpec, extras: Extras) -> bool:
    """Whether the source need not be read: nothing is decoded, and `extras` hold what else it knows, the labels."""
    return not spec.pixels and any(name in spec.extras and name in extras for name in ("label", "labels"))


def can_gather(dataset: Dataset, spec: InputSpec) -> bool:
    """Whether the view is the stored picture itself, so that a batch is one indexing of an array."""
    return (
        isinstance(dataset, ArrayDataset)
        and spec.pixels
        and not spec.teacher
        and dataset.images.shape[1:3] == spec.size
        and spec.crop in ("none", "squash", "centre_square")
    )


def gather(batch: dict[str, np.ndarray], request: Request, dataset: Dataset, spec: InputSpec) -> None:
    """`fill` for all rows at once, where `can_gather`."""
    assert isinstance(dataset, ArrayDataset)
    np.take(dataset.images, request.index, axis=0, out=batch["image"])
    batch["label"][:] = dataset.labels[request.index]
    if spec.flip:
        batch["flip"][:] = [
            flip_for(spec, seed=request.seed, draw=int(draw), index=int(index))
            for index, draw in zip(request.index, request.draw, strict=True)
        ]


def check_extras(spec: InputSpec, extras: Extras, dataset: Dataset) -> None:
    """Raises DataError where the spec asks for a key that nothing serves."""
    if "labels" in spec.extras and not dataset.multi_label:
        raise DataError(
            f"The source {dataset.name} has one label an image, but labels were asked for: use label."
        )
    for name in spec.extras:
        if name not in extras and name not in ("label", "labels"):
            raise DataError(
                f"The input spec asks for the batch key {name!r}, but the loader was given no callable for "
                f"it: pass extras={{{name!r}: ...}}."
            )


def host_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    """This host's contiguous part of the global batch."""
    if batch_size < 1 or batch_size % process_count:
        raise DataError(
            f"The batch size {batch_size} cannot be divided among {process_count} hosts: make it a positive "
            f"multiple of {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise DataError(
            f"The process index {process_index} is not below the process count {process_count}: number hosts "
            "from 0."
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)
