"""Being one process of several, and what one of them does for all."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mim_jax.config.check import ConfigError, differences
from mim_jax.errors import ExitCode, UserError
from mim_jax.storage import StorageError
from mim_jax.training.cluster import START_SECONDS, Cluster, Peers

KEYS_OF_A_HOST = ("config.data.threads", "config.data.prefetch")
"""Keys that may differ between the hosts of a run."""
WAIT_SECONDS = 5.0
"""For the sentence on a lost process, where what failed may be an operation that needed it."""


@contextlib.contextmanager
def joined(
    cluster: Cluster | None, settings: Mapping[str, Any], timeout: float = START_SECONDS
) -> Iterator[Callable[[int], int]]:
    """Runs what is inside as one of the cluster's processes; None = alone.

    Inside, jax knows the devices of all. When a process is lost, the others end with exit code 75 and a sentence that names it.

    Args:
        settings: the configuration and what else must be the same in all processes, as JSON.
        timeout: seconds within which all must have come.
    Yields:
        a function that takes the exit code, tells it to the others, and returns it.
    Raises:
        ConfigError: not all have come, or they do not agree; on all of them.
    """
    if cluster is None or cluster.num_processes == 1:
        yield lambda code: code
        return
    peers = Peers(
        cluster, settings, lambda old, new: list(differences(old, new, "", KEYS_OF_A_HOST)), timeout
    )
    peers.meet()
    jax.distributed.initialize(
        cluster.coordinator, cluster.num_processes, cluster.process_id, cluster.local_device_ids
    )
    peers.watch()

    def leave(code: int) -> int:
        peers.leave(code)
        return code

    try:
        yield leave
    except UserError:
        leave(ExitCode.USAGE_ERROR)
        raise
    except Exception:
        time.sleep(WAIT_SECONDS)  # the watch may end this process meanwhile
        leave(ExitCode.FAILED)
        raise


def first_process_does(action: Callable[[], None], what: str) -> None:
    """Runs `action` on the first process; all of them go on, or all raise.

    Args:
        what: names the action where it failed on another process: "the first process could not {what}".
    Raises:
        ConfigError, StorageError: what `action` raised; on the other processes that it failed.
    """
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            action()
        except (ConfigError, StorageError) as error:
            failure = error
    if jax.process_count() > 1:
        fine = bool(multihost_utils.broadcast_one_to_all(np.asarray(failure is None)))
        if not fine and failure is None:
            failure = StorageError(f"the first process could not {what}: its output says why")
    if failure is not None:
        raise failure
