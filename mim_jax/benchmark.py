"""python -m mim_jax.benchmark: `mim_jax.tasks.benchmark`."""

import sys

from absl import app

from mim_jax.config.check import ConfigError
from mim_jax.tasks.benchmark import main

if __name__ == "__main__":
    try:
        app.run(main)
    except ConfigError as error:
        sys.exit(f"mim_jax: {error}")
