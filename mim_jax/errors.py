"""The base class of every mistake that the user can mend, and the exit codes of all commands."""

import enum


class ExitCode(enum.IntEnum):
    """What a command ends with; launch scripts and schedulers act on it."""

    DONE = 0
    FAILED = 1
    """It ran to its end, and something of it failed, or does not fit."""
    USAGE_ERROR = 2
    """A mistake of the user's: one sentence on stderr."""
    DIVERGED = 3
    """The loss or a gradient was not finite."""
    STOPPED = 75
    """Asked to stop before the end, and saved: the same command resumes. EX_TEMPFAIL of sysexits.h, which SLURM's requeue and
    Kubernetes can act on."""


class UserError(ValueError):
    """Something that the user can mend; the message is one sentence: what, where, what to do."""
