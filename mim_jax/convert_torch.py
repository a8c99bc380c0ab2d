"""python -m mim_jax.convert_torch, also mim-jax convert_torch."""

import sys

from mim_jax.config.arguments import start
from mim_jax.tasks.convert_torch import run

if __name__ == "__main__":
    sys.exit(start(run, sys.argv[1:]))
