"""What weights that cannot be used raise."""

from mim_jax.data.errors import DataError


class WeightsError(DataError):
    """Weights that cannot be used; the message is one sentence for the user."""
