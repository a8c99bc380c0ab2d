"""Checkpoints that survive: Orbax's CheckpointManager with checksums of our own. `manager.py` is the part to read first."""

from mim_jax.training.checkpoints.manager import Checkpoints
from mim_jax.training.checkpoints.manifest import CheckpointError
from mim_jax.training.checkpoints.steps import read_custom_metadata

__all__ = ["CheckpointError", "Checkpoints", "read_custom_metadata"]
