"""Two hosts with unequal shares of the points find what one host finds."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mim_jax.tokenizers.kmeans import KMeansOptions, fit_kmeans

_PROCESS = """
import sys
from pathlib import Path
import jax, numpy as np
address, host, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
jax.distributed.initialize(address, 2, host)
from mim_jax.tokenizers.kmeans import KMeansOptions, fit_kmeans

points = np.load(folder / "points.npy")
own = [np.arange(100), np.arange(100, 900)][host]
options = KMeansOptions(24, 3, 1, max_points_per_centroid=20, rows=256)
shares = fit_kmeans(lambda: ((points[i], i) for i in np.array_split(own, 4)), options, directory=folder / "state")
same = fit_kmeans(lambda: np.array_split(points, 5), options)
np.savez(folder / f"{host}.npz", shares=shares.centroids, same=same.centroids)
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_two_hosts_equal_one(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32)
    np.save(tmp_path / "points.npy", points)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, address, str(host), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for host in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors[0][-3000:] + errors[1][-3000:]
    one = fit_kmeans(lambda: [points], KMeansOptions(24, 3, 1, max_points_per_centroid=20, rows=256))
    first, second = (np.load(tmp_path / f"{host}.npz") for host in range(2))
    for name in ("shares", "same"):
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], one.centroids, rtol=1e-5, atol=1e-6)
