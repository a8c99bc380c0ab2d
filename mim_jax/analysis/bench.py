"""What analysing costs, as a ratio to a plain forward of the same encoder.

    python -m mim_jax.analysis.bench [--config=configs/mae.py:imagenet] [--batch_size=8] [--rounds=5]

Random images and weights; the programs alternate, so that other load hits all alike; medians of the rounds. Also
printed: temporary memory on the device per program, and how the memory of this process grew over the rounds.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mim_jax.analysis.measure import MeasureOptions, make_measure_step, measure
from mim_jax.config.check import ConfigError, check
from mim_jax.config.errors import print_error
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.data import place
from mim_jax.methods import build_method, complete_options
from mim_jax.training.sharding import batch_sharding, make_mesh, replicated

PROGRAMS = {
    "attention": MeasureOptions(),
    "attention + CKA": MeasureOptions(features="flatten", group=4),
    "attention + Jensen-Shannon": MeasureOptions(jensen_shannon=True),
}


def main(argv: Sequence[str]) -> int:
    """Prints a table; the exit code."""
    parser = argparse.ArgumentParser("python -m mim_jax.analysis.bench")
    parser.add_argument("--config", default="configs/mae.py:imagenet", metavar="FILE[:PRESET][,key=value...]")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--looks", default=",".join(PROGRAMS))
    options = parser.parse_args(argv)
    try:
        print(table(options.config, options.batch_size, options.rounds, options.looks.split(",")))
    except ConfigError as error:
        print_error(error)
        return 2
    return 0


def table(spec: str, batch_size: int, rounds: int, looks: Sequence[str]) -> str:
    """The measurement as Markdown."""
    config = override(load(spec), {"data.batch_size": batch_size})
    devices = jax.device_count()
    resolved = resolve(check(config), num_examples=1000, num_devices=devices, platform=jax.default_backend())
    method = build_method(complete_options(resolved))
    mesh = make_mesh(resolved.mesh)
    params = jax.jit(method.init_params, out_shardings=replicated(mesh))(jax.random.key(0))
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (batch_size, *method.net.image_size, 3)).astype(np.uint8)
    batch = place({"image": pixels, "valid": np.ones(batch_size, bool)}, batch_sharding(mesh))

    programs: dict[str, Any] = {"forward": jax.jit(lambda p, b: method.encode(p, b["image"]).final)}
    programs |= {name: make_measure_step(method, PROGRAMS[name], mesh) for name in looks}

    def work(name: str) -> Callable[[], Any]:
        if name == "forward":
            return lambda: jax.block_until_ready(programs[name](params, batch))
        return lambda: measure(programs[name], params, [batch], geometry=method.net.geometry)

    times: dict[str, list[float]] = {name: [] for name in programs}
    resident = 0
    for number in range(rounds + 1):
        for name in programs:
            started = time.perf_counter()
            work(name)()
            if number:  # the first round compiles
                times[name].append(time.perf_counter() - started)
        if number == 1:
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    base = statistics.median(times["forward"])
    lines = [
        f"{devices} x {jax.devices()[0].device_kind}, batch {batch_size}, jax {jax.__version__}, {spec}",
        f"peak memory of the process grew by {grown / 1024:.0f} MiB between round 1 and round {rounds}",
        "",
        "| what | ms a batch | ratio | smallest | largest | temporary memory MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in times.items():
        ratios = [each / plain for each, plain in zip(seconds, times["forward"], strict=True)]
        memory = programs[name].lower(params, batch).compile().memory_analysis()
        lines.append(
            f"| {name} | {1e3 * statistics.median(seconds):.0f} | {statistics.median(seconds) / base:.2f} | {min(ratios):.2f} |"
            f" {max(ratios):.2f} | {memory.temp_size_in_bytes / 2**20:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
