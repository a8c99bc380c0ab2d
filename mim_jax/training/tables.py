"""Tables: what a method's passes keep of every training image, and the passes themselves, between two steps.

A table is an artefact: it is in every checkpoint, and whole on every host. Between its refreshes it lies in host memory,
from where the loader adds the rows of a batch to it, or on the devices, if the pass says so.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mim_jax.config.check import ConfigError
from mim_jax.config.schema import resolved
from mim_jax.data import Dataset, evaluation_batches, place
from mim_jax.methods.protocol import Artefacts, Method, Pass
from mim_jax.progress import Progress
from mim_jax.training.epochs import first_step_of
from mim_jax.training.sharding import batch_sharding, replicated, state_shardings
from mim_jax.training.state import TrainState
from mim_jax.training.watching.log import say

MIB = 2**20


class Interrupted(Exception):
    """A pass was asked to stop before its end. The checkpoint of the step before it is as it was."""


class Tables:
    """The tables of one run: name -> rows [examples, *shape]."""

    def __init__(self, method: Method, dataset: Dataset, mesh: jax.sharding.Mesh) -> None:
        self._method, self._dataset, self._mesh = method, dataset, mesh
        self._passes = {one.name: one for one in method.passes}
        self._held: dict[str, np.ndarray] = {}  # those in host memory
        self._compiled: dict[str, Callable[..., jax.Array]] = {}

    def initial(self) -> Artefacts:
        """The tables of a fresh run."""
        count = len(self._dataset)
        saved = [one for one in self._method.passes if one.saved]
        return {one.name: np.full((count, *one.shape), one.initial, one.dtype) for one in saved}

    def describe(self) -> list[str]:
        """What each table will take, one line each, to be printed before the start."""
        lines = []
        for one in self._method.passes:
            size = len(self._dataset) * int(np.prod(one.shape)) * np.dtype(one.dtype).itemsize / MIB
            where = "on every device" if one.on_device else "in the memory of every host"
            lines.append(f"{one.name}: {one.dtype} {list(one.shape)} an image, {size:.1f} MiB {where}")
        return lines

    def extras(self) -> dict[str, Callable[[Any], Any]]:
        """Batch keys from the tables in host memory, for the loader."""

        def rows_of(name: str) -> Callable[[Any], Any]:
            return lambda index: self._held[name][index]

        return {one.name: rows_of(one.name) for one in self._method.passes if not one.on_device}

    def adopt(self, state: TrainState) -> TrainState:
        """Takes from a complete state the tables that lie in host memory, and adds what is frozen."""
        mine = {name for name, one in self._passes.items() if one.saved and not one.on_device}
        self._held = {name: np.asarray(state.artefacts[name]) for name in mine}
        rest = {name: value for name, value in state.artefacts.items() if name not in mine}
        frozen = jax.device_put(self._method.frozen, replicated(self._mesh))
        return dataclasses.replace(state, artefacts={**rest, **frozen})

    def complete(self, state: TrainState) -> TrainState:
        """The state with every table, for a checkpoint; those of the host are on the devices for that long."""
        saved = {name: rows for name, rows in self._held.items() if self._passes[name].saved}
        held = jax.device_put(saved, replicated(self._mesh))
        own = {name: value for name, value in state.artefacts.items() if name not in self._method.frozen}
        return dataclasses.replace(state, artefacts={**own, **held})

    def due(self, step: int) -> list[Pass]:
        """Passes that run before update `step`; also those that are not saved and not yet there, after a restart."""
        count, batch = len(self._dataset), self._method.config.data.batch_size
        last = int(step * batch / count) + 1
        ended = [e for e in range(max(-1, last - 2), last) if first_step_of(e + 1, count, batch) == step]
        missing = [one.name for one in self._method.passes if not one.saved and one.name not in self._held]
        return [one for one in self._method.passes if one.name in missing or any(one.due(e) for e in ended)]

    def refresh(
        self, passes: Sequence[Pass], state: TrainState, stop: Callable[[], bool]
    ) -> tuple[TrainState, dict[str, float]]:
        """Runs passes; the state that goes on, and metrics of what they took.

        stop: asked before each batch; on several processes it must always say no, for all have to go on together.
        Raises:
            Interrupted: stop() said so.
        """
        metrics: dict[str, float] = {}
        for one in passes:
            started = time.perf_counter()
            index, rows = self._look(one, state.params, stop)
            if not np.isfinite(rows.astype(np.float32)).all():
                raise ConfigError(
                    f"pass {one.name}: some values are not finite numbers: the network has diverged, or its weights are damaged"
                )
            table = np.empty((len(self._dataset), *one.shape), one.dtype)
            table[one.row_of(index, len(self._dataset))] = rows
            if one.on_device:
                placed = jax.device_put(table, replicated(self._mesh))
                state = dataclasses.replace(state, artefacts={**state.artefacts, one.name: placed})
            else:
                self._held[one.name] = table
            seconds = time.perf_counter() - started
            say(f"pass {one.name}: {len(table)} images in {seconds:.1f} s")
            metrics |= {f"pass/{one.name}_seconds": seconds, f"pass/{one.name}_mean": float(table.mean())}
        return state, metrics

    def _look(self, one: Pass, params: Any, stop: Callable[[], bool]) -> tuple[np.ndarray, np.ndarray]:
        """(index [n], rows [n, *shape]) of all training images, of all hosts, in source order."""
        config = self._method.config
        size, sharding = resolved(config.eval.batch_size), batch_sharding(self._mesh)
        if one.name not in self._compiled:
            shardings = state_shardings(jax.eval_shape(lambda: params), self._mesh)
            self._compiled[one.name] = jax.jit(
                one.compute, in_shardings=(shardings, sharding), out_shardings=sharding
            )
        compute = self._compiled[one.name]
        batches = evaluation_batches(
            self._dataset,
            one.input_spec,
            batch_size=size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config.data.threads,
        )
        index: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        ahead: jax.Array | None = None  # the device works on one batch while the host fetches the one before
        with Progress(f"pass {one.name}", len(self._dataset)) as progress:
            for batch in batches:
                if stop():
                    batches.close()
                    raise Interrupted
                index.append(np.where(batch["valid"], batch["index"], -1))
                made = compute(params, place(batch, sharding))
                rows.extend([] if ahead is None else [own_rows(ahead)])
                ahead = made
                progress.update(min(size, len(self._dataset) - progress.done))
        assert ahead is not None
        rows.append(own_rows(ahead))
        return everywhere(index, rows)


def own_rows(x: jax.Array) -> np.ndarray:
    """This host's rows of an array whose first axis is divided over the devices, in order; copies count once."""
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def everywhere(index: Sequence[np.ndarray], rows: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all hosts, once gathered, without padding (index -1)."""
    all_index, all_rows = np.concatenate(list(index)), np.concatenate(list(rows))
    if jax.process_count() > 1:
        all_index = np.asarray(multihost_utils.process_allgather(all_index, tiled=True))
        all_rows = np.asarray(multihost_utils.process_allgather(all_rows, tiled=True))
    valid = all_index >= 0
    return all_index[valid], all_rows[valid]
