"""python -m mim_jax.convert_torch: `mim_jax.tasks.convert_torch`."""

import sys

from mim_jax.tasks.convert_torch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
