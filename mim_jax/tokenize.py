"""python -m mim_jax.tokenize: `mim_jax.tasks.tokenize`."""

import sys

from mim_jax.tasks.tokenize import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
