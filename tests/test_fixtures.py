"""The numbers of the papers' own code are those that were committed once."""

import hashlib
import re

from tests.conftest import FIXTURES


def test_no_fixture_has_changed() -> None:
    rows = re.findall(
        r"^\| (\S+) \| ([\d,]+) \| `(\w{64})` \|$", (FIXTURES / "README.md").read_text(), re.MULTILINE
    )
    listed = {name: (int(size.replace(",", "")), digest) for name, size, digest in rows}
    found = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in FIXTURES.iterdir()
        if path.suffix in (".npz", ".json")
    }
    assert found == listed and len(found) == 6
