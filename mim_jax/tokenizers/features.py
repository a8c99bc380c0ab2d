"""A sample of a teacher's features of all images, kept as files: k-means passes over them many times, the teacher once.

features-00000.npy holds those of the first CHUNK images, and so on. Which patches of an image are taken is a function of (seed,
image) alone, so that any number of hosts makes the same files, and a pass that was stopped resumes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from mim_jax.data import DataError, Dataset, ImageView, evaluation_batches
from mim_jax.data.keys import permutation, uniforms
from mim_jax.data.npy import open_npy
from mim_jax.data.placement import LocalDevices
from mim_jax.models.vit import Params
from mim_jax.progress import Progress
from mim_jax.reading import Unreadable
from mim_jax.storage import atomic_write, make_directory
from mim_jax.targets.pixels import to_unit
from mim_jax.tokenizers.teachers import Teacher

CHUNK = 1024
Features = npt.NDArray[np.floating[Any]]


class FeatureFiles:
    """The files of one data set and teacher in a directory.

    share: expected share of an image's patches that is sampled. dtype: of the files.
    """

    def __init__(
        self, folder: Path, dataset: Dataset, teacher: Teacher, *, share: float, seed: int, dtype: str
    ) -> None:
        self.folder, self._dataset, self._teacher = folder, dataset, teacher
        self._share, self._seed, self._dtype = share, seed, np.dtype(dtype)
        self.num_files = -(-len(dataset) // CHUNK)

    def describe(self) -> str:
        """How many features there will be, and what they take on the disk."""
        count = self._share * len(self._dataset) * self._teacher.grid[0] * self._teacher.grid[1]
        size = count * self._teacher.width * self._dtype.itemsize / 2**20
        return f"about {count:.0f} features of {self._teacher.width} numbers, {size:.0f} MiB in {self.folder}"

    def write(
        self,
        params: Params,
        view: ImageView,
        *,
        batch_size: int,
        threads: int,
        stop: Callable[[], bool],
    ) -> bool:
        """Writes this host's missing files; False = stop() said so before the end.

        view: the view, of the teacher's size.
        """
        make_directory(self.folder)
        devices = LocalDevices()
        placed = jax.device_put(params, devices.replicated)
        batch_size = devices.round_up(batch_size)

        @jax.jit
        def features(params: Params, images: jax.Array) -> jax.Array:
            return self._teacher.features(params, to_unit(images))

        missing = [number for number in range(self.num_files) if not self._file(number).exists()]
        local = [number for number in missing if number % jax.process_count() == jax.process_index()]
        images = sum(min(CHUNK, len(self._dataset) - number * CHUNK) for number in local)
        with Progress("features", images) as progress:
            for number in local:
                sample = []
                batches = evaluation_batches(
                    self._dataset,
                    view,
                    batch_size=batch_size,
                    first=number * CHUNK,
                    limit=CHUNK,
                    threads=threads,
                )
                for batch in batches:
                    if stop():
                        batches.close()
                        return False
                    values = np.asarray(features(placed, jax.device_put(batch["image"], devices.sharded)))
                    rows = np.flatnonzero(batch["valid"])
                    sample += [values[row, self._sampled_patches(int(batch["index"][row]))] for row in rows]
                    progress.update(len(rows))
                self._save(number, np.concatenate(sample).astype(self._dtype))
        return True

    def __call__(self) -> Iterator[tuple[Features, npt.NDArray[np.int64]]]:
        """This host's parts [n, width] and their numbers among those of all hosts [n]; from the disk, which all share."""
        start = 0
        for number in range(self.num_files):
            part: Features = self._read(self._file(number))
            if number % jax.process_count() == jax.process_index() and len(part):
                yield part, np.arange(start, start + len(part))
            start += len(part)

    def _sampled_patches(self, index: int) -> npt.NDArray[np.int64]:
        """Patches of an image that are sampled, ascending: all equally likely, and `share` of them on average."""
        patches = self._teacher.grid[0] * self._teacher.grid[1]
        (extra,) = uniforms(1, self._seed, "share", index)
        count = min(patches, int(self._share * patches + extra))
        return np.sort(permutation(patches, self._seed, "patches", index)[:count])

    def _file(self, number: int) -> Path:
        return self.folder / f"features-{number:05d}.npy"

    @staticmethod
    def _read(path: Path) -> Features:
        try:
            part: Features = open_npy(path)
        except Unreadable as error:
            raise DataError(
                f"The features {path} cannot be used ({error}): delete the file and start again."
            ) from error
        return part

    def _save(self, number: int, features: Features) -> None:
        with atomic_write(self._file(number)) as stream:
            np.save(stream, features, allow_pickle=False)
