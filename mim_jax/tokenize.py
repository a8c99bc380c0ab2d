"""python -m mim_jax.tokenize, also mim-jax tokenize."""

import sys

from mim_jax.config.arguments import start
from mim_jax.tasks.tokenize import run

if __name__ == "__main__":
    sys.exit(start(run, sys.argv[1:]))
