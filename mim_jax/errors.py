"""The base class of every mistake that the user can mend, and the exit code of a command that ends on one."""

USAGE_ERROR = 2


class UserError(ValueError):
    """Something that the user can mend; the message is one sentence: what, where, what to do."""
