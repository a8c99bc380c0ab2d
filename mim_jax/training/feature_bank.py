"""The feature bank: what a method's refreshes keep of every training image, and the refreshes themselves, between two steps.

Each entry is an artefact: it is in every checkpoint, and whole on every host. Between its refreshes it lies in host memory,
from where the loader joins the rows of a batch to it, or on the devices, if the refresh says so.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mim_jax.config.check import ConfigError
from mim_jax.config.schema import Config, resolved
from mim_jax.data import ColumnView, Dataset, View, evaluation_batches, place
from mim_jax.data.views import ArraySpec, Column
from mim_jax.data.views.base import Array, Index
from mim_jax.methods.method import Artefacts, Method, Refresh
from mim_jax.progress import Progress, log
from mim_jax.training.epochs import first_step_of
from mim_jax.training.sharding import batch_sharding, replicated, state_shardings
from mim_jax.training.state import TrainState
from mim_jax.transfer.gathering import gather_hosts, local_rows

MIB = 2**20


class Interrupted(Exception):
    """A refresh was asked to stop before its end. The checkpoint of the step before it is as it was."""


@dataclasses.dataclass(frozen=True)
class _HostColumn:
    """The rows of one entry in host memory, as they are when they are asked for."""

    rows: dict[str, np.ndarray]
    refresh: Refresh

    @property
    def spec(self) -> ArraySpec:
        return ArraySpec(self.refresh.shape, self.refresh.dtype)

    def __getitem__(self, index: Index) -> Array:
        return self.rows[self.refresh.name][index]


class FeatureBank:
    """The entries of one run: name -> rows [examples, *shape]."""

    def __init__(self, method: Method, dataset: Dataset, mesh: jax.sharding.Mesh, config: Config) -> None:
        self._dataset, self._mesh, self._config = dataset, mesh, config
        self._constants = method.constants
        self._refreshes = {refresh.name: refresh for refresh in method.refreshes}
        self._host_rows: dict[str, np.ndarray] = {}
        self._compiled: dict[str, Callable[..., jax.Array]] = {}

    def initial(self) -> Artefacts:
        """The entries of a new run."""
        return {
            name: np.full((len(self._dataset), *r.shape), r.initial, r.dtype)
            for name, r in self._refreshes.items()
            if r.saved
        }

    def describe(self) -> list[str]:
        """What each entry will take, one line each, to be printed before the start."""
        lines = []
        for name, r in self._refreshes.items():
            size = len(self._dataset) * ArraySpec(r.shape, r.dtype).num_bytes / MIB
            where = "on every device" if r.on_device else "in the memory of every host"
            lines.append(f"{name}: {r.dtype} {list(r.shape)} per image, {size:.1f} MiB {where}")
        return lines

    def join(self, view: View) -> View:
        """The view with the entries in host memory as further keys of the batch."""
        columns: dict[str, Column] = {
            name: _HostColumn(self._host_rows, r) for name, r in self._refreshes.items() if not r.on_device
        }
        return ColumnView(view, columns) if columns else view

    def adopt(self, state: TrainState) -> TrainState:
        """Takes from a complete state the entries that lie in host memory, and adds the method's constants."""
        on_host = {name for name, r in self._refreshes.items() if r.saved and not r.on_device}
        self._host_rows.clear()
        self._host_rows.update({name: np.asarray(state.artefacts[name]) for name in on_host})
        others = {name: value for name, value in state.artefacts.items() if name not in on_host}
        constants = jax.device_put(self._constants, replicated(self._mesh))
        return dataclasses.replace(state, artefacts={**others, **constants})

    def complete(self, state: TrainState) -> TrainState:
        """The state with every entry, for a checkpoint; those of the host are on the devices for that long."""
        saved = {name: rows for name, rows in self._host_rows.items() if self._refreshes[name].saved}
        placed = jax.device_put(saved, replicated(self._mesh))
        on_device = {name: v for name, v in state.artefacts.items() if name not in self._constants}
        return dataclasses.replace(state, artefacts={**on_device, **placed})

    def due(self, step: int) -> list[Refresh]:
        """Refreshes that run before update `step`; also those that are not saved and not yet there, after a restart."""
        count, batch = len(self._dataset), self._config.data.batch_size
        last = int(step * batch / count) + 1
        ended = [e for e in range(max(-1, last - 2), last) if first_step_of(e + 1, count, batch) == step]
        return [
            refresh
            for name, refresh in self._refreshes.items()
            if (not refresh.saved and name not in self._host_rows) or any(refresh.due(e) for e in ended)
        ]

    def refresh(
        self, refreshes: Sequence[Refresh], state: TrainState, stop: Callable[[], bool]
    ) -> tuple[TrainState, dict[str, float]]:
        """Runs refreshes; the state that goes on, and metrics of what they took.

        stop: asked before each batch; on several processes it must always say no, for all have to go on together.
        Raises:
            Interrupted: stop() said so.
        """
        metrics: dict[str, float] = {}
        for refresh in refreshes:
            started = time.perf_counter()
            index, rows = self._compute(refresh, state.params, stop)
            if not np.isfinite(rows.astype(np.float32)).all():
                raise ConfigError(
                    f"pass {refresh.name}: some values are not finite numbers: the network has diverged, or its weights are damaged"
                )
            entry = np.empty((len(self._dataset), *refresh.shape), refresh.dtype)
            entry[refresh.row_of(index, len(self._dataset), self._config.seed)] = rows
            if refresh.on_device:
                placed = jax.device_put(entry, replicated(self._mesh))
                state = dataclasses.replace(state, artefacts={**state.artefacts, refresh.name: placed})
            else:
                self._host_rows[refresh.name] = entry
            seconds = time.perf_counter() - started
            log(f"pass {refresh.name}: {len(entry)} images in {seconds:.1f} s")
            metrics |= {
                f"pass/{refresh.name}_seconds": seconds,
                f"pass/{refresh.name}_mean": float(entry.mean()),
            }
        return state, metrics

    def _compute(
        self, refresh: Refresh, params: Any, stop: Callable[[], bool]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(index [n], rows [n, *shape]) of all training images, of all hosts, in the dataset's order."""
        size, sharding = resolved(self._config.eval.batch_size), batch_sharding(self._mesh)
        if refresh.name not in self._compiled:
            shardings = state_shardings(jax.eval_shape(lambda: params), self._mesh)
            self._compiled[refresh.name] = jax.jit(
                refresh.compute, in_shardings=(shardings, sharding), out_shardings=sharding
            )
        compute = self._compiled[refresh.name]
        batches = evaluation_batches(
            self._dataset,
            refresh.view,
            batch_size=size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=self._config.data.threads,
        )
        index: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        ahead: jax.Array | None = None  # the device works on one batch while the host fetches the one before
        with Progress(f"pass {refresh.name}", len(self._dataset)) as progress:
            for batch in batches:
                if stop():
                    batches.close()
                    raise Interrupted
                index.append(np.where(batch["valid"], batch["index"], -1))
                computed = compute(params, place(batch, sharding))
                rows.extend([] if ahead is None else [local_rows(ahead)])
                ahead = computed
                progress.update(min(size, len(self._dataset) - progress.done))
        assert ahead is not None
        rows.append(local_rows(ahead))
        all_index, all_rows = gather_hosts(np.concatenate(index)), gather_hosts(np.concatenate(rows))
        return all_index[all_index >= 0], all_rows[all_index >= 0]
