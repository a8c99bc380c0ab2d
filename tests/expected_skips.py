"""Which tests may be skipped, and where. With MIM_JAX_REFUSE_SKIPS=1 (.ci/run sets it) any other skip fails the session.

A skip is expected if its test is listed here, for the reason that stands here, and where that reason holds. So a test
that is skipped because a library, a fixture or a file is missing turns the session red instead of passing unseen.
"""

import dataclasses
import os
from collections.abc import Callable

import pytest

ASKED = "MIM_JAX_REFUSE_SKIPS"


@dataclasses.dataclass(frozen=True)
class Expected:
    """A test, the reason it gives, and whether it may give it on this machine."""

    test: str  # the beginning of its node id
    reason: str
    holds: Callable[[], bool]


EXPECTED = (
    Expected(
        "tests/models/test_clip_resnet.py::test_rn50x64_at_448_px_equals_timms",
        "a minute and 6 GB: MIM_JAX_HEAVY=1 runs it",
        lambda: os.environ.get("MIM_JAX_HEAVY") != "1",
    ),
    Expected(
        "tests/data/test_bad_files.py::test_unreadable_file",
        "this user may read everything",
        lambda: os.geteuid() == 0,
    ),
    Expected(
        "tests/training/test_checkpoint_damage.py::test_disk_full_is_one_sentence_and_the_rest_stays",
        "mounting a small tmpfs needs root",
        lambda: not may_mount(),
    ),
)


def may_mount() -> bool:
    """Whether this process has the capability that mounting takes (CAP_SYS_ADMIN, bit 21); Linux only."""
    try:
        with open("/proc/self/status") as status:
            effective = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    except FileNotFoundError:
        return False
    return bool(int(effective, 16) >> 21 & 1)


def unexpected(node: str, reason: str) -> bool:
    """Whether the skip of a test for a reason is not listed, or its reason does not hold here."""
    return not any(node.startswith(e.test) and e.reason == reason and e.holds() for e in EXPECTED)


class RefuseSkips:
    """The plugin. Under pytest-xdist the reports of all workers arrive in the controlling process, which judges."""

    def __init__(self) -> None:
        self.skips: list[tuple[str, str]] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A whole file that is skipped while it is imported."""
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):
            self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if not report.skipped:
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if unexpected(report.nodeid, reason):
            self.skips.append((report.nodeid, reason))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skips and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skips:
            terminalreporter.section("skips that tests/expected_skips.py does not list", red=True, bold=True)
            for node, reason in self.skips:
                terminalreporter.line(f"{node}: {reason}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """To be called by conftest.py."""
    if os.environ.get(ASKED) == "1":
        config.pluginmanager.register(RefuseSkips(), "refuse_skips")
