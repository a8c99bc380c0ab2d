"""Times the steps of several runs side by side, as ratios in one process.

    python -m mim_jax.benchmark --run=configs/mae.py:imagenet --run=configs/amt.py:imagenet,model.variant=s

The first run is the baseline. The runs take turns, so that what else the machine does hits all alike; the median of the
rounds counts. Images are random and already on the device: this times the step, not the input. `corrupt` is the time of
the corruption alone as a share of the step. A method with phases is timed in its last one, and the passes that it runs
between steps (AMT's refresh) are timed beside it, per image; `refresh` is their share of the steps of one interval.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mim_jax.config.arguments import Parser, command, positive
from mim_jax.config.check import check
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.data import place
from mim_jax.keys import Purpose, example_keys
from mim_jax.methods import Method, build_method, complete_options
from mim_jax.training.optimiser import make_optimiser
from mim_jax.training.sharding import batch_sharding, make_mesh
from mim_jax.training.state import create_state
from mim_jax.training.step import make_train_step
from mim_jax.training.synthetic_inputs import batch_specs, prepared, random_batch, without_token_cache

EXAMPLES = 1_281_167


class Timed(NamedTuple):
    """One benchmarked run."""

    name: str
    flops: float  # model FLOPs an image
    step: float  # seconds, median
    corrupt: float  # seconds, median
    passes: float  # seconds of all passes on one batch, median
    interval: int  # epochs between passes; 0 = none


@command
def run(argv: Sequence[str]) -> int:
    """Prints a Markdown table; the exit code. Mistakes of the user end in one sentence on stderr."""
    parser = Parser("python -m mim_jax.benchmark", __doc__)
    parser.add_argument(
        "--run",
        action="append",
        required=True,
        metavar="FILE[:PRESET][,KEY=VALUE...]",
        help="a configuration, its preset, and what is changed in it; repeated for every run, the baseline first",
    )
    parser.add_argument(
        "--batch_size", type=positive, default=8, metavar="N", help="images per step, of all runs (8)"
    )
    parser.add_argument(
        "--rounds", type=positive, default=7, metavar="N", help="timed steps of every run (7)"
    )
    options = parser.parse(argv)
    specs, batch_size = options.run, options.batch_size
    runs = [prepare(spec, batch_size) for spec in specs]
    times: list[list[tuple[float, ...]]] = [[] for _ in runs]
    for round_number in range(options.rounds + 2):
        for samples, (_, *works) in zip(times, runs, strict=True):
            seconds_of_round = tuple(seconds(work) for work in works)
            if round_number >= 2:  # the first rounds compile and warm up
                samples.append(seconds_of_round)
    results = []
    for spec, (method, *_), samples in zip(specs, runs, times, strict=True):
        step, corrupt, passes = (statistics.median(column) for column in zip(*samples, strict=True))
        results.append(Timed(spec, method.flops(), step, corrupt, passes, interval_of(method)))
    print(table(results, batch_size))
    return 0


def interval_of(method: Method) -> int:
    """Epochs between two runs of the method's refreshes; 0 without any."""
    if not method.refreshes:
        return 0
    due = [epoch for epoch in range(1000) if method.refreshes[0].due(epoch)]
    return due[1] - due[0]


def prepare(
    spec: str, batch_size: int
) -> tuple[Method, Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """The method, a function that makes one update, one that only corrupts, and one that runs all refreshes."""
    config = override(load(spec), {"data.batch_size": batch_size})
    tokens = without_token_cache(config)
    resolved = complete_options(
        resolve(
            check(config),
            num_examples=EXAMPLES,
            num_devices=jax.device_count(),
            platform=jax.default_backend(),
        )
    )
    method = build_method(resolved)
    last = method.phases[-1].method
    mesh = make_mesh(resolved.mesh)
    batch = place(
        random_batch(batch_specs(method, resolved.method["vocabulary"] if tokens else 0), batch_size),
        batch_sharding(mesh),
    )
    shapes = jax.eval_shape(method.init_params, jax.random.key(0))
    optimiser = make_optimiser(resolved, method.rules, shapes, 1000.0)
    variables = prepared(method, batch_size)
    tables = {
        r.name: np.full((batch_size, *r.shape), r.initial, r.dtype) for r in method.refreshes if r.on_device
    }
    variables = dataclasses.replace(variables, artefacts=variables.artefacts | tables)
    ema = bool(resolved.optim.ema)
    state = create_state(method, optimiser, variables, ema=ema, mesh=mesh, seed=resolved.seed)
    update = make_train_step(last, optimiser, jax.eval_shape(lambda: state), mesh, resolved, 1000.0)
    corrupt_keys = example_keys(0, Purpose.CORRUPT, batch["epoch"], batch["index"])
    corrupt = jax.jit(lambda keys, batch, variables: last.corrupt(keys, batch, variables, True))
    current = [state]

    def step() -> Any:
        current[0], metrics = update(current[0], batch)
        return metrics

    computed = [jax.jit(refresh.compute) for refresh in method.refreshes]
    return (
        last,
        step,
        lambda: corrupt(corrupt_keys, batch, current[0].variables),
        lambda: [compute(current[0].params, batch) for compute in computed],
    )


def seconds(work: Callable[[], Any]) -> float:
    """Wall time until the result is there."""
    started = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - started


def table(results: Sequence[Timed], batch_size: int) -> str:
    """The results as Markdown; ratios are to the first row."""
    base = results[0]
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    lines = [
        f"{device}, batch {batch_size}, jax {jax.__version__}",
        "",
        "| run | ms a step | images/s | step ratio | FLOPs ratio | step / FLOPs | corrupt | refresh |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        step, flops = r.step / base.step, r.flops / base.flops
        lines.append(
            f"| {r.name} | {1e3 * r.step:.0f} | {batch_size / r.step:.1f} | {step:.3f} | {flops:.3f}"
            f" | {step / flops:.3f} | {100 * r.corrupt / r.step:.1f} % | {refresh(r)} |"
        )
    return "\n".join(lines)


def refresh(r: Timed) -> str:
    """Time of the passes over that of the steps between two of them."""
    if not r.interval:
        return "none"
    return f"{100 * r.passes / r.step / r.interval:.1f} % (every {r.interval} epochs)"
