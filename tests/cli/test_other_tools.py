"""The habits of other tools' users: each command line of ``docs/coming-from.md`` is answered as the page says."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer

from rdsrepl.cli.main import app
from tests import ROOT
from tests.fixtures.program import Program, run_in_process

PAGE = (ROOT / "docs" / "coming-from.md").read_text()
ROWS = re.findall(r"^\| `rdsrepl (.+?)` \| (?:`(.+?)`|(works)) \|$", PAGE, re.M)


def test_the_page_is_read() -> None:
    assert len(ROWS) == PAGE.count("\n| `") > 20


@pytest.mark.parametrize(("typed", "hint"), [(typed, hint) for typed, hint, works in ROWS if not works])
def test_a_command_of_another_tool_is_answered_with_ours(rdsrepl: Program, typed: str, hint: str) -> None:
    done = run_in_process(shlex.split(typed), rdsrepl.env, None)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[1:] == [f"hint: {hint}"]
    if hint.startswith("rdsrepl "):
        parse(hint)


@pytest.mark.parametrize("typed", [typed for typed, _, works in ROWS if works])
def test_a_command_line_works_as_typed(typed: str) -> None:
    parse(f"rdsrepl {typed}")


def parse(line: str) -> None:
    """Parse a command line up to its last command, without running it; an unknown word is an error."""
    if line == "rdsrepl --version":
        return
    command: Any = typer.main.get_command(app)
    ctx = command.make_context("rdsrepl", shlex.split(line)[1:])
    while hasattr(ctx.command, "commands") and (rest := [*ctx._protected_args, *ctx.args]):
        name, command, args = ctx.command.resolve_command(ctx, rest)
        try:
            ctx = command.make_context(name, args, parent=ctx)
        except typer.TyperException as exc:
            # A missing operand is for the user to add; the next hint names it.
            assert "Missing" in exc.format_message(), exc.format_message()
            return


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("slot lst", "rdsrepl slot list"),
        ("-t prod slot lst -o json", "rdsrepl -t prod slot list -o json"),
        ("slot drop 'a b' --force", "rdsrepl slot drop 'a b' --yes"),
        ("slot list --outptu json", "did you mean --output?"),
        ("slot list --frobnicate", "rdsrepl slot list --help lists its options"),
        ("frobnicate", "rdsrepl --help lists the commands"),
        ("slot show", "rdsrepl slot show --help"),
        ("slot list -o", "rdsrepl slot list --help"),
        ("slot list -o text", "for one name a line: --output name; for all fields: --output csv"),
        ("slot list -o jsonpath={.items}", "for a part of the document: --output json --query EXPRESSION"),
        ("slot drop x -out=plan", "to save the plan: --out FILE"),
        ("delete", "rdsrepl --help lists the commands"),
        ("get", "rdsrepl --help lists the commands"),
        ("get \x1b[2J", "rdsrepl --help lists the commands"),
    ],
)
def test_a_usage_error_is_one_line_and_a_hint(rdsrepl: Program, typed: str, hint: str) -> None:
    done = run_in_process(shlex.split(typed), rdsrepl.env, None)
    assert (done.code, done.out) == (2, "")
    lines = done.err.splitlines()
    assert lines[0].startswith("error: ") and lines[1:] == [f"hint: {hint}"]
