"""on_bad_image=skip: an image that cannot be used is replaced by another of the same dataset, and counted."""

import threading

from mim_jax.data.datasets.base import Dataset
from mim_jax.data.errors import BadImageError, DataError
from mim_jax.data.examples import Example

STEP = 2_654_435_761  # Odd and large: the replacements of neighbouring indices lie far apart.


class BadImagesReplaced:
    """A dataset whose bad images are replaced by a rule that knows the index alone.

    Example i, where bad, becomes the first good one of (i * STEP + k) mod n, k = 0, 1, ...; its annotation comes
    with it. What a run met before plays no part, so that batches are the same after a resume and for any
    number of hosts. bad: name to reason, of the bad images met so far by this process.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._bad: dict[str, str] = {}
        self._known: set[int] = set()
        self.name, self.num_classes = dataset.name, dataset.num_classes
        self.class_names, self.fingerprint = dataset.class_names, dataset.fingerprint
        self.annotation = dataset.annotation

    @property
    def bad(self) -> dict[str, str]:
        with self._lock:
            return dict(self._bad)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        example = self._try(index)
        for attempt in range(len(self)):
            if example is not None:
                return example
            example = self._try((index * STEP + attempt) % len(self))
        if example is None:
            raise DataError(
                f"None of the {len(self)} images of {self.name} can be used: set --config.data.on_bad_image=error to see "
                "why."
            )
        return example

    def describe(self) -> str:
        return self._dataset.describe() + ", bad images replaced"

    def _try(self, index: int) -> Example | None:
        # Decoded here and now: a header in order says nothing of the rest, and the crop must be drawn for the
        # example that is shown.
        if index in self._known:
            return None
        try:
            return self._dataset[index].decoded()
        except BadImageError as error:
            with self._lock:
                self._known.add(index)
                self._bad[error.where] = error.reason
            return None
