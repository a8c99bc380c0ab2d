"""A session of pytest whose tests are skipped: what is not listed fails it, in one process and under pytest-xdist."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.expected_skips import EXPECTED, unexpected

FILES = {
    "conftest.py": f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    "from tests.expected_skips import pytest_configure\n",
    "test_missing.py": "import pytest\npytest.importorskip('no_such_module', reason='no reason')\n",
    "test_some.py": """
import pytest

def test_called():
    pytest.skip("no reason")

@pytest.mark.skipif(True, reason="no reason")
def test_marked(): pass

@pytest.mark.xfail(reason="no reason")
def test_fails_as_it_should(): assert False

def test_passes(): pass
""",
}


def session(folder: Path, *, refuse: bool, processes: int) -> tuple[int, list[str]]:
    """The exit code, and the tests that are said to be skipped without being listed."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "xdist", "-n", str(processes)]
    environment = {
        **os.environ,
        "MIM_JAX_REFUSE_SKIPS": str(int(refuse)),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = ran.stdout.partition("does not list")[2].splitlines()
    return ran.returncode, sorted(line.removesuffix(": no reason") for line in said if "no reason" in line)


@pytest.mark.parametrize("processes", [0, 2])
def test_an_unlisted_skip_fails_the_session(tmp_path: Path, processes: int) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    expected = ["test_missing.py", "test_some.py::test_called", "test_some.py::test_marked"]
    assert session(tmp_path, refuse=True, processes=processes) == (1, expected)
    if processes == 0:
        assert session(tmp_path, refuse=False, processes=0) == (0, [])


def test_the_list_itself() -> None:
    """Every listed test is there; with another reason, or where its reason does not hold, it is refused."""
    for expected in EXPECTED:
        file, _, name = expected.test.partition("::")
        text = (ROOT / file).read_text()
        assert f"def {name}(" in text and expected.reason in text
        assert unexpected(expected.test, expected.reason) == (not expected.holds())
        assert unexpected(expected.test, "torch is not installed")
