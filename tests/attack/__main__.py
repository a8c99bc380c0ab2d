"""python -m tests.attack [AREA ...] [--sample N] [--jobs N] [--only WORD]

Attacks the real entry points with malformed input, a process each, and prints how every area took it. Exit code 1 unless every
case ended in one sentence (or, where it is legitimate, was accepted). --sample N: every N-th case of each area.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.attack import base, harness
from tests.attack.case import Case


def all_cases(pattern: str) -> list[Case]:
    """CASES of every file beside this one whose name fits."""
    found: list[Case] = []
    for path in sorted(Path(__file__).parent.glob(f"{pattern}.py")):
        found += importlib.import_module(f"tests.attack.{path.stem}").CASES
    names = [(case.area, case.name) for case in found]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return found


def chosen(cases: list[Case], areas: list[str], every: int, word: str) -> list[Case]:
    """Every n-th case of each area, whose name holds `word`."""
    kept, seen = [], dict[str, int]()
    for case in cases:
        if (areas and case.area not in areas) or word not in case.name:
            continue
        if seen.get(case.area, 0) % every == 0:
            kept.append(case)
        seen[case.area] = seen.get(case.area, 0) + 1
    return kept


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("areas", nargs="*")
    parser.add_argument("--sample", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="a part of the cases' names")
    parser.add_argument("--verbose", action="store_true", help="prints every sentence")
    parser.add_argument("--file", default="cases_*", metavar="PATTERN", help="files of cases beside this one")
    parser.add_argument(
        "--bare", action="store_true", help="cases that begin from nothing: no run is made first"
    )
    options = parser.parse_args()
    cases = chosen(all_cases(options.file), options.areas, options.sample, options.only)
    started = time.monotonic()
    harness.load_program()

    def told(ended: harness.Ended) -> None:
        if options.verbose:
            last = (ended.detail.strip().splitlines() or [""])[-1]
            print(
                f"{ended.outcome:16}  {ended.seconds:5.1f} s  {ended.case.area} / {ended.case.name}: {last}",
                flush=True,
            )

    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        if not options.bare:
            base.prepare(Path(folder) / "base")
        ended = harness.attack(cases, Path(folder) / "cases", options.jobs, told)
    for line in harness.table(ended):
        print(line)
    print(f"\n{len(ended)} cases in {time.monotonic() - started:.0f} s")
    return 1 if not ended or any(one.outcome in harness.FAILURES for one in ended) else 0


if __name__ == "__main__":
    sys.exit(main())
