"""The errors of the data floor: one sentence that says what, where and what to do."""

from mim_jax.errors import UserError


class DataError(UserError):
    """Something a user can put right: a path, a name, a file, a setting."""


class BadImageError(DataError):
    """One picture that cannot be used; `where` names it, `reason` says why in a few words."""

    def __init__(self, where: str, reason: str) -> None:
        # Positional arguments only, so that the exception survives pickling and copying.
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"The image {self.where} cannot be used: {self.reason}; repair or remove it, "
            "or set --config.data.on_bad_image=skip to replace such images and count them."
        )
