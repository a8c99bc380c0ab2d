"""Checkpoints that survive: `store.py` is the part to read first."""

from mim_jax.training.checkpoints.reader import saved_about
from mim_jax.training.checkpoints.store import CheckpointError, Checkpoints

__all__ = ["CheckpointError", "Checkpoints", "saved_about"]
