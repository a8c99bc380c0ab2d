"""How much of the decoder's speed the loader keeps: python -m mim_jax.data.bench_loader [images] [batch_size]
[rounds].

Makes 500 x 375 JPEGs from the embedded photographs in a temporary folder and reads them as training does
(random resized crop to 224, bicubic), by three ways that share decoder, crop rule and resize: a bare loop in
one thread, the Loader, and grain.MapDataset where Grain is installed. Rounds alternate, and each way's best
round counts, so that other work on the machine weighs on all alike.

Columns: threads; images a second of wall clock; images a second of processor time (what one core does,
whoever else runs); the latter over the bare loop's.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mim_jax.data.crop import RandomResizedCrop
from mim_jax.data.datasets import Dataset, open_dataset
from mim_jax.data.datasets.photos import photograph_paths
from mim_jax.data.decode import Pixels
from mim_jax.data.decode_pool import choose_threads
from mim_jax.data.examples import EncodedImage, Example
from mim_jax.data.loader import Loader
from mim_jax.data.views import ExampleKey, ImageView

VIEW = ImageView((224, 224), RandomResizedCrop())
WIDTH, HEIGHT, QUALITY = 500, 375, 90


def write_jpegs(root: Path, count: int) -> list[Path]:
    """`count` JPEGs of 500 x 375: crops of the photographs, 4:2:0, about 60 kB each."""
    photographs = [Image.open(path).convert("RGB") for path in photograph_paths()]
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        scale = max(WIDTH / photograph.width, HEIGHT / photograph.height) * random.uniform(1, 1.5)
        large = photograph.resize((round(photograph.width * scale) + 1, round(photograph.height * scale) + 1))
        x, y = (int(random.integers(0, room + 1)) for room in (large.width - WIDTH, large.height - HEIGHT))
        paths.append(root / f"{number:05d}.jpg")
        large.crop((x, y, x + WIDTH, y + HEIGHT)).save(paths[-1], quality=QUALITY)
    return paths


def one(path: Path, index: int) -> Pixels:
    """The work itself: bytes, header, box, decode, crop, resize."""
    example = Example(EncodedImage(path.read_bytes(), str(path)))
    pixels: Pixels = VIEW.render(example, ExampleKey(seed=0, epoch=0, index=index))["image"]
    return pixels


def run_bare(paths: list[Path]) -> None:
    """One picture after another."""
    for index, path in enumerate(paths):
        one(path, index)


def run_loader(dataset: Dataset, batch_size: int, threads: int) -> None:
    """About as many pictures as the source has, by Loader.iterate."""
    with Loader(dataset, VIEW, batch_size=batch_size, seed=0, threads=threads) as loader:
        for _, _ in zip(range(len(dataset) // batch_size), loader.iterate(0), strict=False):
            pass


def run_grain(grain: Any, paths: list[Path], batch_size: int, threads: int) -> None:
    """The same by Grain's random-access data set and its reading threads."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)
    # Batches are elements to Grain: its threads would make one batch each. Reading singly, then batching, is
    # the fair use.
    single = (
        grain.MapDataset.source(paths).shuffle(seed=0).map_with_index(lambda index, path: one(path, index))
    )
    for _ in single.to_iter_dataset(options).batch(batch_size):
        pass


def timed(work: Callable[[], None], images: int) -> tuple[float, float]:
    """(images a second of wall clock, of processor time)."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return images / (time.perf_counter() - wall), images / (time.process_time() - cpu)


def competitors(
    paths: list[Path], dataset: Dataset, batch_size: int
) -> dict[tuple[str, int], Callable[[], None]]:
    """What is timed, by (name, threads)."""
    ways: dict[tuple[str, int], Callable[[], None]] = {("bare loop", 1): partial(run_bare, paths)}
    counts = sorted({1, choose_threads(0)})
    ways |= {("Loader", threads): partial(run_loader, dataset, batch_size, threads) for threads in counts}
    try:
        import grain
    except ImportError:
        print("Grain is not installed: no row for it")
        return ways
    return ways | {
        ("grain", threads): partial(run_grain, grain, paths, batch_size, threads) for threads in counts
    }


def main(count: int = 512, batch_size: int = 64, rounds: int = 3) -> None:
    """Prints the table; `count` is rounded down to whole batches."""
    count -= count % batch_size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "jpegs"
        (folder / "train").mkdir(parents=True)
        (folder / "test").mkdir()
        paths = write_jpegs(folder / "train", count)
        dataset = open_dataset(f"folder:{folder}", "train", cache_dir=name)
        ways = competitors(paths, dataset, batch_size)
        best = dict.fromkeys(ways, (0.0, 0.0))
        for _ in range(rounds):
            for way, work in ways.items():
                wall, cpu = timed(work, count)
                best[way] = (max(best[way][0], wall), max(best[way][1], cpu))
        kilobytes = sum(path.stat().st_size for path in paths) / count / 1000
    bare = best["bare loop", 1][1]
    print(f"{count} JPEGs of {WIDTH} x {HEIGHT}, {kilobytes:.0f} kB each, to 224 x 224")
    print(f"{'':12}{'threads':>8}{'images/s':>10}{'per core s':>12}{'of bare':>9}")
    for (label, threads), (wall, cpu) in best.items():
        print(f"{label:12}{threads:>8}{wall:>10.0f}{cpu:>12.0f}{cpu / bare:>9.2f}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
