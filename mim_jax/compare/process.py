"""One process of a stage: started, watched, and what its log says of its end."""

import signal
import subprocess
import sys
from collections.abc import Sequence

from mim_jax.compare.cores import Cores, only
from mim_jax.compare.stages import Stage
from mim_jax.storage import make_directory, open_to_append

MAIN = (sys.executable, "-m", "mim_jax.main")
"""What runs a stage."""


class Process:
    """A stage under way, on some cores (None = all). Output goes to the end of its log, below the command."""

    def __init__(self, stage: Stage, main: Sequence[str], lock: int, cores: Cores | None) -> None:
        make_directory(stage.log.parent)
        with open_to_append(stage.log) as log, only(cores):
            log.write(f"\n$ {stage.command()}\n")
            log.flush()
            self._log, self._from = stage.log, stage.log.stat().st_size
            # The lock is inherited, so that it is held while the process lives, whatever becomes of us. In a session
            # of its own the process gets no Ctrl-C but what we pass on.
            self._process = subprocess.Popen(
                [*main, *stage.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it lives."""
        return self._process.poll()

    def stop(self) -> None:
        """Asks it to save and to exit with 75."""
        self._process.terminate()

    def reason(self) -> str:
        """Why it ended: the exit code and the last line of its output."""
        code = self._process.returncode
        end = f"exit {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        text = self._log.read_bytes()[self._from :].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"{end}: {lines[-1]}" if lines else f"{end}, without a word"
