"""Every command in a hint, remedy or note exists, and accepts the options and arguments given there."""

from __future__ import annotations

import ast
import difflib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import typer

from rdsrepl.cli.hints import with_selectors
from rdsrepl.cli.main import app
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
# Words that may follow a noun in a sentence, such as "a sandbox command".
_PROSE = {"command", "endpoint"}
# The commands of other programs, up to the end of the sentence.
_FOREIGN = re.compile(r"\b(?:aws|pip|curl|apt-get|psql) [^;()]*")


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


def _read() -> tuple[list[SourceText], list[SourceText], list[SourceText]]:
    """Return all hints and remedies, all other texts, and all docstrings."""
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
    return hints, texts, docstrings


HINTS, TEXTS, DOCSTRINGS = _read()


def _wrong(text: str, *, prose: bool = False, complete: bool = True) -> list[str]:
    """Return the errors in the commands of a text.

    Args:
        prose: the program's name may also begin a sentence about it.
        complete: a command must have what it requires.
    """
    return [
        f"rdsrepl{match[1]}: {wrong}"
        for match in _COMMAND.finditer(" ".join(text.split()))
        if (wrong := _fault(match[1].split(), prose=prose, complete=complete))
    ]


def _fault(words: list[str], *, prose: bool, complete: bool) -> str | None:
    if "--" in words:  # the arguments of another program follow
        words = words[: words.index("--")]
    nodes: list[Any] = [PROGRAM]
    while words and all(hasattr(node, "commands") for node in nodes):
        word = words[0].rstrip(".:")
        if word.startswith("-"):
            break
        found = [
            child for node in nodes for name, child in node.commands.items() if name == word or word.startswith(HOLE)
        ]
        if not found:
            known = [name for node in nodes for name in node.commands]
            if prose and (
                word in _PROSE or (nodes == [PROGRAM] and not difflib.get_close_matches(word, known, cutoff=0.8))
            ):
                return None
            return f"there is no {word}"
        nodes, words = found, words[1:]
    options = [word for word in words if word.startswith("--")]
    faults = [_unfit(node, words, options, complete=complete) for node in nodes]
    return None if None in faults else faults[0]


def _unfit(command: Any, words: list[str], options: list[str], *, complete: bool) -> str | None:
    parameters = [parameter for node in (command, PROGRAM) for parameter in node.params]
    known = {option: parameter for parameter in parameters for option in parameter.opts}
    known |= {"--help": None}
    for option in options:
        if HOLE not in option and option.partition("=")[0].rstrip(".:") not in known:
            return f"it has no {option}"
    if not complete or hasattr(command, "commands") or "…" in words:
        return None
    positional, skip = 0, False
    for word in words:
        parameter = known.get(word)
        if word.startswith("-"):
            skip = parameter is not None and not parameter.is_flag and not parameter.count
        elif skip:
            skip = False
        else:
            positional += 1
    required = [parameter for parameter in command.params if parameter.required]
    arguments = [parameter for parameter in required if not parameter.opts[0].startswith("-")]
    if positional < len(arguments):
        return f"it requires {', '.join(argument.metavar or argument.name for argument in arguments)}"
    lacking = [p.opts[0] for p in required if p not in arguments and not set(p.opts) & set(options)]
    return f"it requires {', '.join(lacking)}" if lacking else None


def test_commands_in_hints_exist_and_are_complete() -> None:
    assert len(HINTS) > 150, "the test no longer collects the hints"
    assert [f"{one.where}: {wrong}" for one in HINTS for wrong in _wrong(one.text)] == []


def test_commands_in_any_text_run_when_pasted() -> None:
    """A command ends where its sentence says so: words after it would be pasted as well."""
    texts = {(one.where, " ".join(one.text.replace(HOLE, "x").split())) for one in [*HINTS, *TEXTS]}
    # The name of an option that is a placeholder is tested when the program prints it.
    wrong = [f"{where}: {reason}" for where, text in texts for reason in wrong_commands(text) if "--x" not in text]
    assert sorted(wrong) == []


def test_commands_in_any_text_exist() -> None:
    # A text that is only the beginning of a command is completed elsewhere.
    found = [
        f"{one.where}: {wrong}"
        for one in TEXTS
        for wrong in _wrong(one.text, prose=True, complete=_COMMAND.fullmatch(one.text) is None)
    ]
    found += [
        f"{one.where}: {wrong}"
        for one in DOCSTRINGS
        for wrong in _wrong(one.text.replace("``", "`"), prose=True, complete=False)
    ]
    assert found == []


def test_options_in_hints_exist() -> None:
    known: set[str] = set()

    def walk(command: Any) -> None:
        known.update(option for parameter in command.params for option in parameter.opts)
        for child in getattr(command, "commands", {}).values():
            walk(child)

    walk(PROGRAM)
    missing = [
        f"{one.where}: {option}"
        for one in HINTS
        for option in _OPTION.findall(_FOREIGN.sub("", one.text))
        if option not in known | {"--help"}
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("drop it (rdsrepl slot drop NAME), then again", []),
        (f"wait for it: rdsrepl {HOLE} show {HOLE}", []),
        ("rdsrepl slot list shows them", []),
        ("rdsrepl slot advance NAME 16/B374D848", []),
        ("printf x | rdsrepl role create …", []),
        ("rdsrepl slots list", ["rdsrepl slots list: there is no slots"]),
        ("try rdsrepl slot remove NAME", ["rdsrepl slot remove NAME: there is no remove"]),
        ("rdsrepl slot list --everything", ["rdsrepl slot list --everything: it has no --everything"]),
        ("rdsrepl slot drop", ["rdsrepl slot drop: it requires NAME"]),
        ("rdsrepl slot drop --dsn X", ["rdsrepl slot drop --dsn X: it requires NAME"]),
        (f"rdsrepl instance create {HOLE}", [f"rdsrepl instance create {HOLE}: it requires --class"]),
        ("rdsrepl -t prod slot list", []),
    ],
)
def test_wrong_commands_are_found(text: str, wrong: list[str]) -> None:
    assert _wrong(text) == wrong


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
    ],
)
def test_hints_have_the_selectors_of_the_command_line(
    typed: str, hint: str, pasted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDSREPL_PROFILE", "of the environment")
    with PROGRAM.make_context("rdsrepl", [*shlex.split(typed), "slot", "list"]) as ctx:
        assert with_selectors(ctx, hint) == pasted
    assert wrong_commands(pasted) == [] or "supports" in pasted


def test_a_hint_that_the_command_line_refuses_fails_its_test() -> None:
    assert wrong_commands("hint: rdsrepl slot drop\n") and wrong_commands('{"hint": "x: rdsrepl slot lst"}')
    assert wrong_commands("hint: rdsrepl slot list shows them") and wrong_commands(
        "next: rdsrepl slot list --everything"
    )
    assert not wrong_commands("hint: rdsrepl --cluster 'a b' slot drop -- -x\nrdsrepl: done\n")


def test_a_typed_selector_is_in_the_hint_and_not_that_of_the_environment(rdsrepl: Program, db15: Database) -> None:
    typed = rdsrepl("slot", "show", "nope", "-o", "json", dsn=db15.dsn).error["hint"]
    assert (
        typed
        == f"list them: {shlex.join(['rdsrepl', '--dsn', db15.dsn])} slot list; slots do not move to another server"
    )
    assert "--dsn" not in rdsrepl("slot", "show", "nope", env={"RDSREPL_DSN": db15.dsn}).err
