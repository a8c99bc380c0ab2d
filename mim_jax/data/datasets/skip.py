"""on_bad_image=skip: a picture that cannot be used is replaced by another of the same source, and counted."""

import threading

from mim_jax.data.datasets.base import ArrayPicture, Dataset, Picture
from mim_jax.data.errors import BadImageError, DataError

STEP = 2_654_435_761  # Odd and large: the replacements of neighbouring indices lie far apart.


class Skipping:
    """A source whose bad pictures are replaced by a rule that knows the index alone.

    Example i, where bad, becomes the first good one of (i * STEP + k) mod n, k = 0, 1, ...; its label comes
    with it. What a run met before plays no part, so that batches are the same after a resume and for any
    number of hosts. bad: name to reason, of the bad pictures met so far by this process.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._bad: dict[str, str] = {}
        self._known: set[int] = set()
        self.name, self.num_classes = dataset.name, dataset.num_classes
        self.class_names, self.fingerprint = dataset.class_names, dataset.fingerprint
        self.multi_label = dataset.multi_label

    @property
    def bad(self) -> dict[str, str]:
        with self._lock:
            return dict(self._bad)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Picture:
        picture = self._try(index)
        for attempt in range(len(self)):
            if picture is not None:
                return picture
            picture = self._try((index * STEP + attempt) % len(self))
        if picture is None:
            raise DataError(
                f"None of the {len(self)} images of {self.name} can be used: set --config.data.on_bad_image=error to see "
                "why."
            )
        return picture

    def describe(self) -> str:
        return self._dataset.describe() + ", bad images replaced"

    def _try(self, index: int) -> Picture | None:
        # Decoded here and now: a header in order says nothing of the rest, and the crop must be drawn for the
        # picture that is shown.
        if index in self._known:
            return None
        try:
            picture = self._dataset[index]
            return ArrayPicture(picture.pixels(), picture.label, picture.labels)
        except BadImageError as error:
            with self._lock:
                self._known.add(index)
                self._bad[error.where] = error.reason
            return None
