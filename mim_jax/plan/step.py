"""The train step of one phase, compiled for the devices of a topology from shapes alone, and what the compiler says of it."""

import dataclasses
import re
import time
from typing import Any

import jax

from mim_jax.config.schema import Config
from mim_jax.methods.method import Method
from mim_jax.plan.program import Collective, Gather, collectives, cycles_by_part, gathers, parse
from mim_jax.plan.topology import Topology
from mim_jax.training.monitoring.peak_flops import peak_flops
from mim_jax.training.optimiser import make_optimiser
from mim_jax.training.sharding import abstract, batch_sharding, make_mesh, state_shardings
from mim_jax.training.state import state_shapes
from mim_jax.training.step import make_train_step
from mim_jax.training.synthetic_inputs import abstract_batch, batch_specs, prepared

_EXHAUSTED = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
"""What a TPU's compiler says when a program does not fit: what it takes, and what there is."""
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. arguments: state and batch; temporaries: all else at the worst moment; None where it was not told."""

    arguments: float | None
    temporaries: float | None
    total: float
    limit: float

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What the compiler says of one phase's step. Seconds and MFU are its estimates; None where it gives none.

    model_flops: of the global batch, as this project counts them; xla_flops: as XLA counts those of all devices' programs.
    parts: share of the estimated time.
    """

    phase: str
    memory: Memory
    model_flops: float
    xla_flops: float | None
    estimated_seconds: float | None
    estimated_mfu: float | None
    parts: dict[str, float]
    collectives: list[Collective]
    gathers: list[Gather]
    compile_seconds: float


def plan_step(
    config: Config, method: Method, phase: int, topology: Topology, num_examples: int, vocabulary: int
) -> StepPlan:
    """Compiles the step of a phase.

    Args:
        config: resolved for the topology's devices; `method` is built from it.
        num_examples: of the training split.
        vocabulary: of token ids that come with the batch; 0 = none.
    """
    started = time.perf_counter()
    name, batch_size = method.phases[phase].name, config.data.batch_size
    model_flops = method.phases[phase].method.flops() * batch_size
    lowered = lower_step(config, method, phase, topology, num_examples, vocabulary)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        exhausted = next((found for form in _EXHAUSTED if (found := form.search(str(error)))), None)
        if exhausted is None:
            raise
        used, limit = (float(exhausted[i]) * _UNITS[exhausted[i + 1]] for i in (1, 3))
        memory = Memory(None, None, used, limit)
        seconds = time.perf_counter() - started
        return StepPlan(name, memory, model_flops, None, None, None, {}, [], [], seconds)
    seconds = time.perf_counter() - started
    program = parse(compiled.as_text())
    cycles = cycles_by_part(program)
    total = sum(cycles.values())
    estimate = total / topology.chip.clock_hz if total and topology.chip.clock_hz else None
    peak = peak_flops(topology.devices[0].device_kind, config.model.dtype)
    costs = compiled.cost_analysis() or {}
    count = len(topology.devices)
    return StepPlan(
        phase=name,
        memory=_memory(compiled, topology.chip.memory),
        model_flops=model_flops,
        xla_flops=costs["flops"] * count if "flops" in costs else None,
        estimated_seconds=estimate,
        estimated_mfu=model_flops / count / estimate / peak if estimate and peak else None,
        parts={part: value / total for part, value in cycles.items()},
        collectives=collectives(program),
        gathers=gathers(program),
        compile_seconds=seconds,
    )


def lower_step(
    config: Config, method: Method, phase: int, topology: Topology, num_examples: int, vocabulary: int
) -> Any:
    """The step of a phase, lowered from shapes; no array of the network's or the batch's size is made."""
    mesh = make_mesh(config.mesh, topology.devices)
    steps_per_epoch = num_examples / config.data.batch_size
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    optimiser = make_optimiser(config, method.rules, shapes, steps_per_epoch)
    state = state_shapes(method, optimiser, prepared(method, num_examples), bool(config.optim.ema))
    step = make_train_step(method.phases[phase].method, optimiser, state, mesh, config, steps_per_epoch)
    batch = abstract_batch(batch_specs(method, vocabulary), config.data.batch_size, batch_sharding(mesh))
    traced = step.trace(abstract(state, state_shardings(state, mesh)), batch)  # type: ignore[attr-defined]
    return traced.lower(lowering_platforms=(topology.platform,))


def _memory(compiled: Any, limit: float) -> Memory:
    stats = compiled.memory_analysis()
    outputs = (
        stats.output_size_in_bytes - stats.alias_size_in_bytes
    )  # the state is donated: it is written over
    total = stats.argument_size_in_bytes + stats.temp_size_in_bytes + outputs
    return Memory(stats.argument_size_in_bytes, stats.temp_size_in_bytes, total, limit)


def largest_batch(fits: Any, start: int, multiple: int) -> int:
    """The largest global batch, a multiple of `multiple`, that fits; 0 where none does.

    fits: batch -> Memory, by compiling. Memory grows almost linearly with the batch: two batches tell where the limit is, and
    what is returned was compiled and fits.
    """
    tried: dict[int, Memory] = {}

    def memory(batch: int) -> Memory:
        if batch not in tried:
            tried[batch] = fits(batch)
        return tried[batch]

    first = max(multiple, start - start % multiple)
    second = max(multiple, first // 2 - first // 2 % multiple)
    if second == first:
        second = 2 * first
    low, high = sorted((memory(first).total, memory(second).total))
    small, large = sorted((first, second))
    slope = (high - low) / (large - small)
    limit = memory(first).limit
    guess = int((limit - low) / slope + small) if slope > 0 else large
    guess -= guess % multiple
    while guess >= multiple and not memory(guess).fits:
        guess -= max(multiple, (guess // 50) // multiple * multiple)
    while guess >= multiple and guess + multiple not in tried and memory(guess + multiple).fits:
        guess += multiple
    return max(guess, 0)
