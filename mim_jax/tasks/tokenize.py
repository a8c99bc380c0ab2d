"""Computes the token ids of every image of a run once, and keeps them as a token cache (docs/papers/mapet.md 8).

    python -m mim_jax.tokenize --config=configs/mapet.py --config.method.weights=FILE --config.method.tokens=DIR

The configuration is that of the run which is to learn from the ids: data set, splits, views and grid are its own. DIR gets those of
the training split, DIR/held_out those of the held-out split, and DIR.html shows the codes as patches of images and how they are
used. Every host writes its share of the shards. The same command resumes where it was stopped, and the files are the same.

Exit codes: 0 done, 2 a mistake of the user's, 75 asked to stop (the same command resumes).
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils

from mim_jax.config.arguments import Parser, command, positive
from mim_jax.config.check import ConfigError, check, to_dict
from mim_jax.config.files import load, override
from mim_jax.config.resolve import image_size, resolve_model
from mim_jax.config.schema import Config, resolved
from mim_jax.data import (
    Dataset,
    ImageView,
    Subset,
    TokenWriter,
    evaluation_batches,
    even_numbers,
    make_crop,
)
from mim_jax.data.placement import LocalDevices
from mim_jax.data.tokens_cache import HEADER
from mim_jax.errors import ExitCode
from mim_jax.methods import check_options
from mim_jax.methods.token_method import HELD_OUT, TokenOptions
from mim_jax.progress import Progress, log
from mim_jax.storage import Lock
from mim_jax.targets.pixels import to_unit
from mim_jax.tasks.codes_report import SHOWN_IMAGES, most_used, write_codes_report
from mim_jax.tokenizers.assignment import usage_and_perplexity
from mim_jax.tokenizers.tokenizer import Tokenizer, check_tokenizer_fits, open_tokenizer
from mim_jax.training import distributed
from mim_jax.training.cluster import add_cluster_options, cluster_of
from mim_jax.training.datasets import open_split
from mim_jax.training.shutdown import Shutdown

BATCH = 256
ROWS_PER_SHARD = 16_384
"""Images of a shard: what is computed again after a stop."""


def parse(argv: Sequence[str]) -> tuple[Config, TokenOptions, argparse.Namespace]:
    """The run's configuration, its token options, and the options beside it.

    Raises:
        ConfigError: one sentence.
    """
    parser = Parser("python -m mim_jax.tokenize", __doc__)
    parser.add_config()
    parser.add_argument(
        "--batch_size", default=BATCH, type=positive, metavar="N", help=f"images per host and call ({BATCH})"
    )
    add_cluster_options(parser)
    arguments, values = parser.parse_with_assignments(argv)
    config = check(override(load(arguments.config), values))
    options = check_options(config)
    if not isinstance(options, TokenOptions):
        raise ConfigError(
            f"{arguments.config} predicts no token ids: name the configuration of a method that does"
        )
    for key in ("weights", "tokens"):
        if not getattr(options, key):
            raise ConfigError(f"config.method.{key} is empty: {_MEANING[key]}")
    if config.augment.crop == "random_resized" or config.augment.flip:
        raise ConfigError(
            "token ids are kept for one fixed view of each image, but this configuration has random crops or flips: pass"
            " --config.augment.crop=centre_square --config.augment.flip=False, here and in the run"
        )
    if config.augment.eval_crop == "random_resized":
        raise ConfigError(
            "token ids of held-out images are kept for one fixed view of each: pass --config.augment.eval_crop=centre_square,"
            " here and in the run"
        )
    return config, options, arguments


_MEANING = {
    "weights": "pass the tokenizer's file, --config.method.weights=FILE",
    "tokens": "pass the directory to write, --config.method.tokens=DIR",
}


@command
def run(argv: Sequence[str]) -> int:
    """Everything; the exit code. Mistakes of the user end in one sentence on stderr."""
    config, options, arguments = parse(argv)
    settings = {"config": to_dict(config), "--batch_size": arguments.batch_size}
    with distributed.joined(cluster_of(arguments), settings, arguments.start_timeout) as leave:
        return leave(tokenize(config, options, arguments.batch_size))


def tokenize(config: Config, options: TokenOptions, batch_size: int = BATCH) -> int:
    """Writes the cache `options.tokens` for both splits of `config`; the exit code."""
    tokenizer = open_tokenizer(options.tokenizer, options.weights)
    model = resolve_model(config.model, jax.default_backend())
    patch, (height, width) = resolved(model.patch), image_size(model)
    check_tokenizer_fits(tokenizer, options.weights, options.vocabulary, (height // patch, width // patch))
    data, augment = config.data, config.augment
    train_dataset, test_dataset = (
        open_split(data, split, config.seed) for split in (data.split, data.test_split)
    )
    view, held_out_view = (
        ImageView(
            tokenizer.image_size, make_crop(crop, augment.scale, augment.ratio), resample=tokenizer.resample
        )
        for crop in (augment.crop, augment.eval_crop)
    )
    writer = TokenWriter(options.tokens, _header(tokenizer, train_dataset, view), ROWS_PER_SHARD)
    splits = [_Split("training images", train_dataset, view, writer)]
    # Held-out ids come first and lie inside the cache, which is complete or absent.
    if not (writer.partial / HELD_OUT / HEADER).exists():
        header = _header(tokenizer, test_dataset, held_out_view)
        held_out_writer = TokenWriter(writer.partial / HELD_OUT, header, ROWS_PER_SHARD)
        splits.insert(0, _Split("held-out images", test_dataset, held_out_view, held_out_writer))
    lock = Lock(writer.lock_file, f"the token cache {writer.path}")
    distributed.first_process_does(lock.acquire, f"have {writer.path} for this command")
    try:
        return _tokenize(config, tokenizer, splits, batch_size)
    finally:
        lock.release()


@dataclasses.dataclass(frozen=True)
class _Split:
    """A split whose ids are to be written. images: 'training images'."""

    images: str
    dataset: Dataset
    view: ImageView
    writer: TokenWriter


def _tokenize(config: Config, tokenizer: Tokenizer, splits: Sequence[_Split], batch_size: int) -> int:
    """Writes all splits; the last one is that of the training images, in whose directory the others lie."""
    dataset, view, writer = splits[-1].dataset, splits[-1].view, splits[-1].writer
    for split in splits:
        log(f"data     {split.images}: {split.dataset.describe()}")
    log(
        f"tokens   {tokenizer.name} {tokenizer.fingerprint}, {tokenizer.vocabulary} codes, {tokenizer.grid} an image"
    )
    with Shutdown() as shutdown:
        finished = all(
            _write(tokenizer, split, config.data.threads, batch_size, shutdown) for split in splits
        )
    if not finished:
        log("asked to stop; the same command goes on from the shards that are written")
        return ExitCode.STOPPED
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all shards are written")
    if jax.process_index() == 0:
        for split in splits[:-1]:
            split.writer.finish()
        counts = np.zeros(tokenizer.vocabulary, np.int64)
        for shard in range(writer.num_shards):
            counts += np.bincount(np.ravel(writer.shard(shard)), minlength=tokenizer.vocabulary)
        usage, perplexity = usage_and_perplexity(counts)
        shown = Subset(dataset, even_numbers(len(dataset), SHOWN_IMAGES))
        examples = most_used(
            shown, view, tokenizer.grid, counts, _read_rows(writer, shown.numbers(range(len(shown))))
        )
        writer.finish()
        log(f"usage    {100 * usage:.1f} % of the codes, perplexity {perplexity:.0f}")
        page = writer.path.with_name(f"{writer.path.name}.html")
        properties = {
            "tokens": str(writer.path),
            "tokenizer": f"{tokenizer.name} {tokenizer.fingerprint}",
            "counted on": dataset.describe(),
            "patches": f"of {len(shown)} images spread over the source",
            "view": f"{view.crop.name}, {view.size[0]} x {view.size[1]} px",
        }
        write_codes_report(page, f"{tokenizer.name} tokens of {dataset.name}", properties, counts, examples)
        log(f"cache    {writer.path}\nreport   {page}")
    return 0


def _read_rows(writer: TokenWriter, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.integer[Any]]:
    """The written ids [n, L] of the examples `numbers`, ascending."""
    ids = []
    for shard in range(writer.num_shards):
        rows = writer.rows(shard)
        in_shard = numbers[(numbers >= rows.start) & (numbers < rows.stop)]
        ids.append(np.asarray(writer.shard(shard)[in_shard - rows.start]))
    return np.concatenate(ids)


def _header(tokenizer: Tokenizer, dataset: Dataset, view: ImageView) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "vocabulary": tokenizer.vocabulary,
        "grid": tokenizer.grid,
        "view": view.crop.name,
        "size": view.size,
        "source": dataset.name,
        "length": len(dataset),
        "source_fingerprint": dataset.fingerprint,
    }


def _write(tokenizer: Tokenizer, split: _Split, threads: int, batch_size: int, shutdown: Shutdown) -> bool:
    """Writes this host's missing shards; False = asked to stop before the end.

    A host uses its local devices only: hosts may be at different speeds, and one that is restarted disturbs no other.
    """
    writer = split.writer
    devices = LocalDevices()
    params = jax.device_put(tokenizer.params, devices.replicated)
    batch_size = devices.round_up(batch_size)

    @jax.jit
    def ids(params: Any, images: jax.Array) -> jax.Array:
        # Ids are an argmin over close distances: no TF32, so that other machines find the same.
        with jax.default_matmul_precision("highest"):
            return tokenizer.ids(params, to_unit(images))

    shards = [shard for shard in writer.missing() if shard % jax.process_count() == jax.process_index()]
    total = sum(len(writer.rows(shard)) for shard in shards)
    if len(shards) < writer.num_shards:
        log(
            f"shards   {len(shards)} of {writer.num_shards} of the {split.images} are this process's to write"
        )
    with Progress(f"token ids, {split.images}", total) as progress:
        for shard in shards:
            examples, ids_of_shard = writer.rows(shard), []
            batches = evaluation_batches(
                split.dataset,
                split.view,
                batch_size=batch_size,
                first=examples.start,
                limit=len(examples),
                threads=threads,
            )
            for batch in batches:
                if shutdown.requested:
                    batches.close()
                    return False
                batch_ids = ids(params, jax.device_put(batch["image"], devices.sharded))
                ids_of_shard.append(np.asarray(batch_ids)[batch["valid"]])
                progress.update(len(ids_of_shard[-1]))
            writer.write(shard, np.concatenate(ids_of_shard))
    return True
