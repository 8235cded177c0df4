"""Every command that an error's hint, a remedy or a note names exists, with the options and arguments it is given."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import typer

from rdsrepl.cli.main import app
from tests import ROOT

SOURCE = ROOT / "rdsrepl"
ROOT: Any = typer.main.get_command(app)
# What stands where an f-string puts a value in.
HOLE = "\ufffc"
# Where a command ends in a sentence; a hole or an ellipsis is a word of it.
_COMMAND = re.compile(rf"\brdsrepl((?:[ ]+(?:'[^']*'|[\w\-./:=…{HOLE}\[\]|]+))+)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# Words that follow a noun in a sentence: the sandbox's endpoint, a sandbox command.
_PROSE = {"command", "endpoint"}
# Other programs' commands, up to the end of what is said of them.
_FOREIGN = re.compile(r"\b(?:aws|pip|curl|apt-get|psql) [^;()]*")


@dataclass(frozen=True)
class Said:
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
    """The texts an expression can come to: each side of a condition, not the pieces of an f-string."""
    if isinstance(node, ast.Call) and _text(node) != HOLE:
        yield node.lineno, _text(node)
        return
    if isinstance(node, ast.JoinedStr | ast.BinOp) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        yield node.lineno, _text(node)
        return
    for child in ast.iter_child_nodes(node):
        yield from _pieces(child)


def _read() -> tuple[list[Said], list[Said], list[Said]]:
    """All hints and remedies; all other texts; all docstrings."""
    hints: list[Said] = []
    texts: list[Said] = []
    docstrings: list[Said] = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = str(path.relative_to(SOURCE))
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                docstrings.append(Said(f"{name}:{node.lineno}", _text(node.value)))
                node.value.value = None
        texts += [Said(f"{name}:{line}", text) for line, text in _pieces(tree)]
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in ("hint", "remedy"):
                hints += [Said(f"{name}:{line}", text) for line, text in _pieces(node.value)]
    return hints, texts, docstrings


HINTS, TEXTS, DOCSTRINGS = _read()


def _wrong(text: str, *, prose: bool = False, complete: bool = True) -> list[str]:
    """What of the commands in a text does not hold.

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
    if "--" in words:  # what follows is another program's
        words = words[: words.index("--")]
    nodes: list[Any] = [ROOT]
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
                word in _PROSE or (nodes == [ROOT] and not difflib.get_close_matches(word, known, cutoff=0.8))
            ):
                return None
            return f"there is no {word}"
        nodes, words = found, words[1:]
    options = [word for word in words if word.startswith("--")]
    faults = [_unfit(node, words, options, complete=complete) for node in nodes]
    return None if None in faults else faults[0]


def _unfit(command: Any, words: list[str], options: list[str], *, complete: bool) -> str | None:
    parameters = [parameter for node in (command, ROOT) for parameter in node.params]
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
    assert len(HINTS) > 150, "hints are no longer found"
    assert [f"{said.where}: {wrong}" for said in HINTS for wrong in _wrong(said.text)] == []


def test_commands_in_any_text_exist() -> None:
    # Where a text is nothing but a command's first words, the rest is put to it elsewhere.
    found = [
        f"{said.where}: {wrong}"
        for said in TEXTS
        for wrong in _wrong(said.text, prose=True, complete=_COMMAND.fullmatch(said.text) is None)
    ]
    found += [
        f"{said.where}: {wrong}"
        for said in DOCSTRINGS
        for wrong in _wrong(said.text.replace("``", "`"), prose=True, complete=False)
    ]
    assert found == []


def test_options_in_hints_exist() -> None:
    known: set[str] = set()

    def walk(command: Any) -> None:
        known.update(option for parameter in command.params for option in parameter.opts)
        for child in getattr(command, "commands", {}).values():
            walk(child)

    walk(ROOT)
    missing = [
        f"{said.where}: {option}"
        for said in HINTS
        for option in _OPTION.findall(_FOREIGN.sub("", said.text))
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
def test_this_test_can_fail(text: str, wrong: list[str]) -> None:
    assert _wrong(text) == wrong


def test_no_command_is_composed_by_hand() -> None:
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


# Names of our own pages and commands, and sentences.
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
