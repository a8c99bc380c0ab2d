"""Whatever the code, the tests and the documents cite in this repository is there: papers by section, files by path."""

import re
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

CITED = re.compile(r"docs/papers/(\w+)\.md")
SECTION = re.compile(r"A?\d+(?:\.\d+)*(?![\w.]*\w)")
BETWEEN = re.compile(r"(?:[ ,\n#]|-|\band\b|\bto\b|\bsections?\b|\([a-z-]+\))+")
MARK = re.compile(r"\(?([a-f]|T\d+|item \d+)\b\)?")
WRITTEN_OUT = re.compile(
    r"(?<![\w/.-])((?:docs|tests|configs|launch|mim_jax)/[\w./+-]*\.(?:md|py|sh|npz|json|jsonl|csv|png))\b"
)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


MADE_UP = {
    "configs/FILE.py",
    "configs/NAME.py",
    "configs/mapett.py",
    "configs/hidden_colour.py",
    "mim_jax/data/datasets/npy.py",
    "mim_jax/data/views/captions.py",
    "mim_jax/methods/hidden_colour.py",
    "mim_jax/targets/colour.py",
}


@cache
def sources() -> dict[Path, str]:
    """Every text file that a person wrote; recorded results are not."""
    folders = ("mim_jax", "configs", "tests", "docs", "launch", ".ci")
    paths = [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".sh")
    ]
    paths += [ROOT / ".ci" / "run", ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml"]
    return {path: path.read_text() for path in paths if path != Path(__file__).resolve()}


@cache
def sections(page: str) -> dict[str, str]:
    """Number -> text of a page's sections, each with those inside it."""
    text = (ROOT / "docs" / "papers" / f"{page}.md").read_text()
    heads = [
        (found.start(), len(found[1]), found[2]) for found in re.finditer(r"^(##+) (\S+)", text, re.MULTILINE)
    ]
    found = {}
    for number, (start, level, name) in enumerate(heads):
        end = next((later for later, other, _ in heads[number + 1 :] if other <= level), len(text))
        found[name] = text[start:end]
    return found


def cited(text: str, start: int) -> list[str]:
    """The sections and the marks in them (A4, c, T5, item 12) that follow a page's name."""
    found = []
    while True:
        gap = BETWEEN.match(text, start)
        at = gap.end() if gap else start
        if not (match := SECTION.match(text, at) or (MARK.match(text, at) if found else None)):
            return found
        found.append(match[1] if match.re is MARK else match[0])
        start = match.end()


def missing(page: str, marks: list[str]) -> list[str]:
    """Those of the sections and marks that the page does not have."""
    absent, within = [], ""
    for mark in marks:
        if SECTION.fullmatch(mark):
            within = sections(page).get(mark, "")
            there = mark in sections(page)
        elif mark.startswith("item "):
            there = re.search(rf"^(\| )?{mark[5:]}(\.| \|) ", within, re.MULTILINE) is not None
        elif mark.startswith("T"):
            there = re.search(rf"^- {mark} ", within, re.MULTILINE) is not None
        else:
            there = f"({mark})" in within
        absent += [] if there else [mark]
    return absent


def test_cited_sections_are_read_as_they_are_written() -> None:
    cases = {
        " 3 to 6).": ["3", "6"],
        " 2.1-2.3).": ["2.1", "2.3"],
        " A3.3, A4 (a, b, c). Every": ["A3.3", "A4", "a", "b", "c"],
        " 14.2, item 12: 500": ["14.2", "item 12"],
        " 1.5 (probe), 1.6 and 2.2, b": ["1.5", "1.6", "2.2", "b"],
        " section 10, T5 to T8, T11.": ["10", "T5", "T8", "T11"],
        " 3: 0.0004": ["3"],
        "). permuted": [],
    }
    for text, expected in cases.items():
        assert cited(text, 0) == expected, text
    assert missing("amt", ["1.3", "10", "T14"]) == [] and missing("beyond_masking", ["A4", "e"]) == []
    assert missing("amt", ["1.7", "10", "T15"]) == ["1.7", "T15"]
    assert missing("mapet", ["14.2", "item 13", "item 14"]) == ["item 14"]


def test_every_cited_section_of_a_paper_exists() -> None:
    count, wrong = 0, []
    for path, text in sources().items():
        for reference in CITED.finditer(text):
            page = reference[1]
            if not (ROOT / "docs" / "papers" / f"{page}.md").exists():
                wrong.append((path.name, page))
                continue
            marks = cited(text, reference.end())
            count += 1 + len(marks)
            wrong += [(path.name, page, mark) for mark in missing(page, marks)]
    assert not wrong
    assert count > 200


def test_nothing_is_cited_that_stands_elsewhere() -> None:
    """Papers are cited by their page here, not as the "spec" they were written from."""
    old = re.compile(
        r"\b[Ss]pec(?:'s)? (?:\w+\.md|A?\d)|shared/(?:spec|fixtures)|\b(?:DESIGN|STACK|STYLE)\.md"
    )
    assert not [(path.name, found[0]) for path, text in sources().items() for found in old.finditer(text)]


def test_every_path_that_is_named_exists() -> None:
    """Repository paths in prose and code, and the links of documents; but for files that somebody is yet to write."""
    wrong = []
    for path, text in sources().items():
        named = {ROOT / found for found in set(WRITTEN_OUT.findall(text)) - MADE_UP}
        if path.suffix == ".md":
            named |= {path.parent / found for found in LINK.findall(text)}
        wrong += [(path.relative_to(ROOT).as_posix(), str(one)) for one in named if not one.exists()]
    assert not wrong
