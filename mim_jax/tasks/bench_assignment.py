"""How fast points find their nearest centroids, beside a plain matmul of the same size.

    python -m mim_jax.tasks.bench_assignment [--points=2048] [--dim=4096] [--clusters=8192] [--rounds=9]

All take turns on one device, so that what else the machine does hits all alike; medians of the rounds count. The ratio is
the median over rounds of the faster matmul's time to that of the work itself. GFLOP are those of the matmul, for all; all compute in
true float32.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.config.arguments import Parser, command, positive
from mim_jax.targets.tokens import nearest_centroid
from mim_jax.tokenizers.assignment import nearest_tiled

Work = Callable[[], jax.Array]


@command
def run(argv: Sequence[str]) -> int:
    """Prints a Markdown table."""
    parser = Parser("python -m mim_jax.tasks.bench_assignment", __doc__)
    for name, default in (("points", 2048), ("dim", 4096), ("clusters", 8192), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=str(default))
    options = parser.parse(argv)
    n, d, k = options.points, options.dim, options.clusters
    times = alternate(works(n, d, k), options.rounds)
    matmul = [min(pair) for pair in zip(times["matmul x c'"], times["matmul x c"], strict=True)]
    print(f"{jax.devices()[0].device_kind}, n={n} d={d} k={k}, jax {jax.__version__}\n")
    print("| work | ms | GFLOP/s | of the faster matmul |\n|---|---|---|---|")
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(matmul, seconds, strict=True))
        median = statistics.median(seconds)
        print(f"| {name} | {1e3 * median:.1f} | {2e-9 * n * d * k / median:.1f} | {ratio:.3f} |")
    return 0


def works(points: int, width: int, clusters: int) -> dict[str, Work]:
    """What is timed, on random arrays that are already on the device."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((points, width), np.float32))
    c = jnp.asarray(random.standard_normal((clusters, width), np.float32))
    turned = jnp.asarray(np.ascontiguousarray(np.asarray(c).T))
    exact = jax.lax.Precision.HIGHEST
    rows = jax.jit(lambda x, c: jnp.einsum("nd,kd->nk", x, c, precision=exact))
    columns = jax.jit(lambda x, c: jnp.einsum("nd,dk->nk", x, c, precision=exact))
    tiled, plain = jax.jit(nearest_tiled), jax.jit(nearest_centroid)
    return {
        "matmul x c'": lambda: rows(x, c),
        "matmul x c": lambda: columns(x, turned),
        "nearest_tiled": lambda: tiled(x, c),
        "nearest_centroid": lambda: plain(x, c),
    }


def alternate(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, after two that compile and warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            started = time.perf_counter()
            work().block_until_ready()
            if number >= 2:
                times[name].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
