"""python -m mim_jax.benchmark, also mim-jax benchmark."""

import sys

from mim_jax.config.arguments import start
from mim_jax.tasks.benchmark import run

if __name__ == "__main__":
    sys.exit(start(run, sys.argv[1:]))
