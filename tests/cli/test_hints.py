"""Every command in a hint, remedy or note exists, and accepts the options and arguments given there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import typer

from rdsrepl.cli.hints import with_selectors
from rdsrepl.cli.main import app
from rdsrepl.text.commands import STEP_OPTIONS
from tests import ROOT
from tests.fixtures.hints import wrong_commands

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

SOURCE = ROOT / "rdsrepl"
PROGRAM: Any = typer.main.get_command(app)
# The placeholder for a value in an f-string.
HOLE = "\ufffc"
# The end of a command in a sentence; a placeholder or an ellipsis is part of the command.
_COMMAND = re.compile(rf"\brdsrepl((?:[ ]+(?:'[^']*'|[\w\-./:=…{HOLE}\[\]|]+))+)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# The commands of other programs, up to the end of the sentence.
_FOREIGN = re.compile(r"\b(?:aws|pip|curl|apt-get|psql|truncate) [^;()]*")


@dataclass(frozen=True)
class SourceText:
    """A piece of text in the source."""

    where: str
    text: str


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command" and node.args:
        return "rdsrepl " + _text(node.args[0]).replace("{}", HOLE)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Call):
        return _text(node.value)
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else HOLE
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return HOLE


def _pieces(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the possible texts of an expression: each side of a condition, not the pieces of an f-string."""
    if isinstance(node, ast.Call) and _text(node) != HOLE:
        yield node.lineno, _text(node)
        return
    if isinstance(node, ast.JoinedStr | ast.BinOp) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        yield node.lineno, _text(node)
        return
    for child in ast.iter_child_nodes(node):
        yield from _pieces(child)


@dataclass(frozen=True)
class Source:
    """All hints and remedies, all other texts, and all docstrings."""

    hints: list[SourceText]
    texts: list[SourceText]
    docstrings: list[SourceText]


@cache
def source() -> Source:
    """Read the source at the first call: not every worker runs these tests."""
    hints: list[SourceText] = []
    texts: list[SourceText] = []
    docstrings: list[SourceText] = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = str(path.relative_to(SOURCE))
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                docstrings.append(SourceText(f"{name}:{node.lineno}", _text(node.value)))
                node.value.value = None
        texts += [SourceText(f"{name}:{line}", text) for line, text in _pieces(tree)]
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in ("hint", "remedy"):
                hints += [SourceText(f"{name}:{line}", text) for line, text in _pieces(node.value)]
    return Source(hints, texts, docstrings)


def _wrong(text: str) -> list[str]:
    return wrong_commands(" ".join(text.split()))


def test_commands_in_texts_run_when_pasted() -> None:
    """A command ends where its sentence says so: words after it would be pasted as well."""
    assert len(source().hints) > 150, "the test no longer collects the hints"
    # The name of an option that is a placeholder is tested when the program prints it.
    texts = {
        (one.where, one.text.replace(HOLE, "x"))
        for one in [*source().hints, *source().texts]
        if f"--{HOLE}" not in one.text
    }
    assert [f"{where}: {wrong}" for where, text in texts for wrong in _wrong(text)] == []


def test_commands_in_docstrings_exist() -> None:
    wrong = [f"{one.where}: {wrong}" for one in source().docstrings for wrong in _wrong(one.text.replace("``", "`"))]
    incomplete = ("Missing argument", "Missing option", "has no verb")
    assert [one for one in wrong if not any(words in one for words in incomplete)] == []


def test_options_in_hints_exist() -> None:
    known: set[str] = set()

    def walk(command: Any) -> None:
        known.update(option for parameter in command.params for option in parameter.opts)
        for child in getattr(command, "commands", {}).values():
            walk(child)

    walk(PROGRAM)
    missing = [
        f"{one.where}: {option}"
        for one in source().hints
        for option in _OPTION.findall(_FOREIGN.sub("", one.text))
        if option not in known | {"--help"}
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("drop it (rdsrepl slot drop NAME), then again", None),
        ("wait for it: rdsrepl slot show x", None),
        ("rdsrepl slot advance NAME 16/B374D848", None),
        ("rdsrepl -t prod slot list", None),
        ("rdsrepl --cluster 'a b' slot drop -- -x", None),
        ("rdsrepl: done; rdsrepl does not drop a slot", None),
        ("rdsrepl slots list", "no command 'slots'"),
        ("rdsrepl slot list shows them", "shows them"),
        ("try rdsrepl slot remove NAME", "no command 'remove'"),
        ("rdsrepl slot list --everything", "--everything"),
        ("rdsrepl slot", "no verb"),
        ("rdsrepl slot drop", "Missing argument 'NAME'"),
        ("rdsrepl slot drop --dsn X", "Missing argument 'NAME'"),
        ("rdsrepl instance create x", "--class"),
        ('{"error": "x", "message": "rdsrepl slot does not", "hint": "x: rdsrepl slot lst"}', "no command 'lst'"),
    ],
)
def test_wrong_commands_are_found(text: str, wrong: str | None) -> None:
    found = wrong_commands(text)
    assert found == [] if wrong is None else len(found) == 1 and wrong in found[0]


def test_commands_with_values_come_from_the_quoting_function() -> None:
    """A command with a value in it comes from ``command``, which quotes the value and refuses control characters."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = str(path.relative_to(SOURCE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr | ast.BinOp):
                continue
            raw = "".join(
                value.value if isinstance(value, ast.Constant) else HOLE
                for value in (node.values if isinstance(node, ast.JoinedStr) else [])
                if not isinstance(value, ast.Constant) or isinstance(value.value, str)
            )
            found += [f"{name}: rdsrepl{match[1]}" for match in _COMMAND.finditer(raw) if HOLE in match[1]]
    assert sorted(set(found) - _BY_HAND) == []


# Names of pages and commands of rdsrepl, and sentences.
_BY_HAND = {
    f"__main__.py: rdsrepl {HOLE}",
    f"cli/demo.py: rdsrepl {HOLE}",
    f"cli/demo.py: rdsrepl {HOLE} exited with {HOLE}",
    f"cli/help.py: rdsrepl {HOLE} --help",
    f"cli/html_option.py: rdsrepl {HOLE}",
    f"cli/main.py: rdsrepl {HOLE}",
    f"doctor/security.py: rdsrepl role grant NAME{HOLE}",
    f"text/commands.py: rdsrepl {HOLE}",
    f"help_topics.py: rdsrepl help {HOLE}",
    f"help_topics.py: rdsrepl runbook show {HOLE}",
}


@pytest.mark.parametrize(
    ("typed", "hint", "pasted"),
    [
        ("--instance mz", "list them: rdsrepl slot list", "list them: rdsrepl --instance mz slot list"),
        ("-t prod", "a (rdsrepl slot drop x), b", "a (rdsrepl -t prod slot drop x), b"),
        (
            "--cluster a --dbname 'o s' --region r",
            "rdsrepl doctor; rdsrepl cluster show a",
            "rdsrepl --cluster a --dbname 'o s' --region r doctor; rdsrepl --region r cluster show a",
        ),
        ("--dbname a --profile p", "rdsrepl slot show --dbname b x", "rdsrepl --profile p slot show --dbname b x"),
        ("--instance a --user u", "rdsrepl doctor --cluster a", "rdsrepl --user u doctor --cluster a"),
        ("--cluster a --user u", "rdsrepl instance reboot a-1", "rdsrepl --user u instance reboot a-1"),
        ("--region r", "rdsrepl -t sandbox slot list", "rdsrepl -t sandbox slot list"),
        ("--region r", "rdsrepl sandbox up && rdsrepl help", "rdsrepl sandbox up && rdsrepl help"),
        ("--region r", "rdsrepl supports slot tail", "rdsrepl supports slot tail"),
        (
            "--dsn 'dbname=d host=h password=hunter2'",
            "rdsrepl slot list",
            "rdsrepl --dsn 'dbname=d host=h' slot list",
        ),
        ("--dsn postgresql://u@h/d", "rdsrepl slot list", "rdsrepl --dsn postgresql://u@h/d slot list"),
        ("--dsn 'not a dsn' --dbname x", "rdsrepl slot list", "rdsrepl --dsn 'not a dsn' --dbname x slot list"),
        ("", "rdsrepl slot list", "rdsrepl slot list"),
        ("--dbname 'a\x1bb'", "x (rdsrepl slot list), y", "x ((no command is shown: an option cannot be pasted)), y"),
    ],
)
def test_hints_have_the_selectors_of_the_command_line(
    typed: str, hint: str, pasted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDSREPL_PROFILE", "of the environment")
    with PROGRAM.make_context("rdsrepl", [*shlex.split(typed), "slot", "list"]) as ctx:
        assert with_selectors(ctx, hint) == pasted
    assert wrong_commands(pasted) == []


def test_a_typed_selector_is_in_the_hint_and_not_that_of_the_environment(rdsrepl: Program, db15: Database) -> None:
    typed = rdsrepl("slot", "show", "nope", "-o", "json", dsn=db15.dsn).error["hint"]
    assert (
        typed
        == f"list them: {shlex.join(['rdsrepl', '--dsn', db15.dsn])} slot list; slots do not move to another server"
    )
    in_environment = {"RDSREPL_DSN": db15.dsn}
    assert "--dsn" not in rdsrepl("slot", "show", "nope", env=in_environment).err
    # The environment of a runbook's step ends with the step.
    in_step = rdsrepl("slot", "show", "nope", "-o", "json", env={**in_environment, STEP_OPTIONS: "dsn"})
    assert in_step.error["hint"] == typed
