"""mim-jax VERB ..., also python -m mim_jax VERB ...: every command of mim_jax."""

import importlib
import sys
from collections.abc import Sequence

from mim_jax.config.arguments import command, start
from mim_jax.config.errors import ConfigError, nearest

VERBS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "main": ("mim_jax.main", (), "runs a configuration: pre-training, fine-tuning, a tokenizer, an analysis"),
    "compare": (
        "mim_jax.compare.__main__",
        (),
        "trains and evaluates several methods under equal conditions",
    ),
    "tokenize": ("mim_jax.tasks.tokenize", (), "computes the token ids of every image of a run once"),
    "gallery": (
        "mim_jax.main",
        ("--config=gallery",),
        "draws every corruption of one image: main --config=gallery",
    ),
    "benchmark": ("mim_jax.tasks.benchmark", (), "times the steps of several runs side by side"),
    "plan": ("mim_jax.plan.__main__", (), "compiles a run's step for devices that are not here: does it fit"),
    "convert_torch": ("mim_jax.tasks.convert_torch", (), "converts a PyTorch file of weights to safetensors"),
}
"""Verb -> (module with its `run`, arguments before the user's, what it does)."""


@command
def run(argv: Sequence[str]) -> int:
    """The verb argv[0] with the rest of the arguments; the exit code."""
    if not argv or argv[0] in ("-h", "-help", "--help"):
        print("usage: mim-jax VERB [--help] ...\n")
        for verb, (*_, summary) in VERBS.items():
            print(f"  {verb:15}{summary}")
        print("\nmim-jax VERB --help explains a verb. python -m mim_jax VERB is the same command.")
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}{nearest(verb, VERBS)}; there are {', '.join(VERBS)}")
    module, defaults, _ = VERBS[verb]
    code: int = importlib.import_module(module).run([*defaults, *rest])
    return code


def main() -> None:
    """The console script."""
    sys.exit(start(run, sys.argv[1:]))


if __name__ == "__main__":
    main()
