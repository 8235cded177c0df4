"""``rdsrepl help``: every page is a topic, also from a wheel; an unknown topic gets a suggestion."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rdsrepl import help_topics
from tests import ROOT
from tests.fixtures.program import complete
from tests.fixtures.terminal import run_on_terminal

if TYPE_CHECKING:
    from tests.fixtures.program import Program

PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md") if path.stem != "reference")


def test_every_page_is_a_topic_with_a_title(rdsrepl: Program) -> None:
    rows = rdsrepl("-o", "json", "help").json
    assert [row["topic"] for row in rows] == PAGES
    assert all(row["title"] and "`" not in row["title"] for row in rows)
    assert len({row["title"] for row in rows}) == len(rows)
    listed = rdsrepl("help")
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == PAGES
    assert "rdsrepl help TOPIC" in listed.err


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_printed_as_markdown_into_a_pipe(rdsrepl: Program, page: str) -> None:
    assert rdsrepl("help", page).out == (ROOT / "docs" / f"{page}.md").read_text()
    found = rdsrepl("help", page, "-o", "json").json
    assert found == {"topic": page, "title": found["title"], "text": (ROOT / "docs" / f"{page}.md").read_text()}


@pytest.mark.parametrize("words", [("exit-codes",), ("exit", "codes"), ("Exit_Codes",), ("exit-codes.md",)])
def test_a_topic_may_be_written_in_several_ways(rdsrepl: Program, words: tuple[str, ...]) -> None:
    result = rdsrepl("help", *words)
    assert result.code == 0 and result.out.startswith("# Exit codes\n")


@pytest.mark.parametrize("words", [("slot", "tail"), ("slot",), ("param-group", "create"), ("psql",)])
def test_a_command_prints_its_help(rdsrepl: Program, words: tuple[str, ...]) -> None:
    asked, own = rdsrepl("help", *words), rdsrepl(*words, "--help")
    assert (asked.code, asked.err) == (0, "")
    # Except for the name of the program, which the tests call by another name.
    one, other = (re.sub(r"Usage: [\w.-]+ ", "", " ".join(out.split())) for out in (asked.out, own.out))
    assert one == other
    document = rdsrepl("help", *words, "-o", "json").json
    assert document["command"] == " ".join(words) and document["help"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("kinesi",), "rdsrepl help kinesis"),
        (("exit-code",), "rdsrepl help exit-codes"),
        (("slot", "tial"), "rdsrepl help slot tail"),
        (("wal2json",), "rdsrepl help formats"),
        (("abandoned",), "rdsrepl runbook show abandoned-slot"),
        (("zzzzzz",), "list the topics: rdsrepl help"),
        (("reference",), ""),
        (("../README",), ""),
    ],
)
def test_an_unknown_topic_gets_a_suggestion(rdsrepl: Program, words: tuple[str, ...], hint: str) -> None:
    result = rdsrepl("help", *words, "-o", "json")
    assert result.code == 3 and result.out == ""
    assert result.error["error"] == "not_found" and hint in result.error["hint"]


def test_topics_complete(rdsrepl: Program) -> None:
    assert complete(rdsrepl, "help", "exi") == ["exit-codes"]
    assert {"slots", "slot"} <= set(complete(rdsrepl, "help", "sl"))
    assert complete(rdsrepl, "help", "slot", "ta") == ["tail"]
    assert complete(rdsrepl, "help", "nonsense", "x") == []


def test_links_become_commands_on_a_terminal() -> None:
    text = (
        "See [roles](roles.md#x), [below](#y), [AWS](https://aws.amazon.com/x), ![picture](p.png), [rb](runbooks/a.md)."
    )
    assert help_topics.for_terminal(text) == (
        "See roles (`rdsrepl help roles`), below, AWS (https://aws.amazon.com/x), ![picture](p.png), "
        "rb (`rdsrepl runbook show a`)."
    )


def test_a_long_page_is_shown_in_the_pager(rdsrepl: Program, tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text(f"#!/bin/sh\nprintf 'paged %s\\n' \"$*\"\ncat > {tmp_path}/text\n")
    pager.chmod(0o755)
    code, shown = run_on_terminal(rdsrepl, "help", "slots", rows=10, PAGER=f"{pager} -x")
    assert (code, shown) == (0, "paged -x\n")
    text = (tmp_path / "text").read_text()
    assert "formats (rdsrepl help formats)" in re.sub(r"\s+", " ", text)
    assert "\x1b" not in text and "**" not in text and "](" not in text
    code, shown = run_on_terminal(rdsrepl, "help", "slots", rows=1000, PAGER=str(pager))
    assert code == 0 and "paged" not in shown and "wal_status" in shown


def test_less_keeps_the_colours(rdsrepl: Program, tmp_path: Path) -> None:
    less = tmp_path / "less"
    less.write_text(f'#!/bin/sh\nprintf \'%s %s\' "$*" "$LESS" > {tmp_path}/how\ncat > {tmp_path}/text\n')
    less.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert run_on_terminal(rdsrepl, "help", "slots", rows=10, PATH=path, NO_COLOR=None)[0] == 0
    assert (tmp_path / "how").read_text() == "-R FX"
    assert "\x1b[1;36" in (tmp_path / "text").read_text()
    assert run_on_terminal(rdsrepl, "help", "slots", rows=10, PATH=path)[0] == 0
    assert not re.search(r"\x1b\[[\d;]*3\dm", (tmp_path / "text").read_text()), "NO_COLOR holds"


@pytest.mark.parametrize("pager", ["", "cat", "/nowhere/pager", "  ", "less '"])
def test_a_page_is_printed_without_a_pager(rdsrepl: Program, pager: str) -> None:
    code, shown = run_on_terminal(rdsrepl, "help", "exit-codes", rows=5, PAGER=pager)
    assert code == 0 and "Running a command again" in shown


def test_a_wheel_contains_the_pages(tmp_path: Path) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        included = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["docs"] == "rdsrepl/docs"
    # As in a wheel: the package with its pages in it, and nothing beside it.
    shutil.copytree(ROOT / "rdsrepl", tmp_path / "rdsrepl", ignore=shutil.ignore_patterns("__pycache__"))
    program = "from rdsrepl import help_topics; print(help_topics.directory()); print(*help_topics.names())"
    command = [sys.executable, "-c", program]
    lost = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "NotFound" in lost.stderr
    (tmp_path / "rdsrepl" / "docs").symlink_to(ROOT / "docs")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "rdsrepl" / "docs"), *PAGES]


def test_help_imports_no_renderer_at_start() -> None:
    program = "import sys, rdsrepl.cli.main; print([m for m in ('rich', 'markdown_it') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
