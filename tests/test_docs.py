"""The pages: every page is linked, every link and path leads somewhere, and tables say what the commands say."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import segonnx
from segonnx.cli import COMMANDS
from tests.conftest import ROOT
from tools import make_option_tables

DOCS = ROOT / "docs"
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
PLACEHOLDERS = ("NAME", "FAMILY")
"""What CONTRIBUTING.md calls a file that a reader adds."""
STATUS = re.compile(r"accepted|superseded by \d{4}|accepted, (?:\S.*) superseded by \d{4}")


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(text: str) -> list[str]:
    """The relative links of a page: what follows ``](`` outside of code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links that lead to no file, or to no heading of it."""
    broken = []
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if name and not target.exists():
            broken.append(link)
        elif anchor:
            content = text if target == page else target.read_text("utf-8")
            if anchor not in {slug(heading) for heading in re.findall(r"^#+ (.*)$", content, re.MULTILINE)}:
                broken.append(link)
    return broken


def missing_paths(text: str) -> list[str]:
    """The files, folders and programs of this repository that a page names and that don't exist."""
    paths = re.findall(r"(?<![\w/.-])((?:segonnx|benchmarks|tests|tools|examples|docs)/[\w./-]*\w)", text)
    paths += [name.replace(".", "/") + ".py" for name in re.findall(r"python -m ((?:benchmarks|tests)[\w.]*\w)", text)]
    known = [path for path in dict.fromkeys(paths) if Path(path).stem not in PLACEHOLDERS]
    return [path for path in known if not (ROOT / path).exists()]


def described(decision: Path) -> tuple[str, str, str]:
    """A decision's number, title and status, from the top of its file."""
    heading, blank, status = decision.read_text("utf-8").split("\n", 3)[:3]
    number, _, title = heading.removeprefix("# ").partition(": ")
    assert number == decision.name[:4] and title and not blank, decision
    assert status.startswith("Status: "), f"{decision}: the line below the title must say 'Status: ...'"
    return number, title, status.removeprefix("Status: ")


def unlisted(index: str, folder: Path) -> list[str]:
    """The pages in a folder that an index doesn't link."""
    known = {link.partition("#")[0] for link in links(index)}
    return [page.name for page in sorted(folder.glob("*.md")) if page.name not in known | {"index.md", "README.md"}]


def test_the_index_leads_to_every_page() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    assert not unlisted(index, DOCS)
    assert {f"internals/{page.name}" for page in (DOCS / "internals").glob("*.md")} <= set(links(index))
    assert "decisions/README.md" in links(index)
    assert unlisted("[the bench](bench.md)", DOCS) == [
        page.name for page in sorted(DOCS.glob("*.md")) if page.name not in ("bench.md", "index.md")
    ]


def test_the_index_of_decisions_says_what_they_say() -> None:
    rows = [
        f"| [{number}]({path.name}) | {title} | {status} |"
        for path in DECISIONS
        for number, title, status in [described(path)]
    ]
    found = [line for line in (DOCS / "decisions" / "README.md").read_text("utf-8").splitlines() if "](" in line]
    assert found == rows


@pytest.mark.parametrize("decision", DECISIONS, ids=ids)
def test_a_decision_says_whether_it_holds(decision: Path) -> None:
    _, _, status = described(decision)
    assert STATUS.fullmatch(status), status
    for number in re.findall(r"superseded by (\d{4})", status):
        assert [path for path in DECISIONS if path.name.startswith(number) and path != decision]


def test_a_decision_without_a_status_is_found(tmp_path: Path) -> None:
    (tmp_path / "0001-rooms.md").write_text("# 0001: Rooms\n\nThere are rooms.\n")
    with pytest.raises(AssertionError, match="Status"):
        described(tmp_path / "0001-rooms.md")


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not broken_links(page, text)
    assert not missing_paths(text)


def test_a_link_that_leads_nowhere_is_found() -> None:
    text = "# Top\n\n[a](bench.md) [b](nowhere.md) [c](#top) [d](#bottom) [e](https://example.org) `[f](code.md)`"
    assert broken_links(DOCS / "page.md", text) == ["nowhere.md", "#bottom"]


def test_a_path_that_does_not_exist_is_found() -> None:
    text = "`segonnx/cli.py`, segonnx/gone.py, `python -m benchmarks.docs`, `python -m benchmarks.gone`, tests/core/"
    assert missing_paths(text) == ["segonnx/gone.py", "benchmarks/gone.py"]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=ids)
def test_options_are_those_of_the_commands(page: Path) -> None:
    text = page.read_text("utf-8")
    assert make_option_tables.with_tables(text) == text, f"{ids(page)} has old tables of options: run `make docs`"
    written = [line for line in make_option_tables.BLOCK.sub("", text).splitlines() if line.startswith("| `-")]
    assert not written, f"{ids(page)} lists options by hand"


def test_each_command_has_one_table_of_options() -> None:
    found = [match[2] for page in DOCS.glob("*.md") for match in make_option_tables.BLOCK.finditer(page.read_text())]
    assert sorted(found) == sorted(["segonnx", *COMMANDS])


def test_an_old_table_of_options_is_made_anew() -> None:
    old = "before\n<!-- options verify: generated -->\n| `--gone` | nothing |\n<!-- /options verify -->\nafter\n"
    new = make_option_tables.with_tables(old)
    assert "--gone" not in new and "| `--key" in new
    assert new.startswith("before\n") and new.endswith("\nafter\n")
    assert make_option_tables.with_tables(new) == new


def test_every_argument_of_the_public_export_stands_in_its_table() -> None:
    text = (DOCS / "weights.md").read_text("utf-8").partition("## Python")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    arguments = [
        name for name, one in inspect.signature(segonnx.export).parameters.items() if one.kind == one.KEYWORD_ONLY
    ]
    assert sorted(named) == sorted(arguments)
