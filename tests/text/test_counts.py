"""Numbers with their nouns, and no text of the program that ignores the number one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from rdsrepl.text.counts import counted, form, named
from tests import ROOT

NOUNS = {
    *("byte", "change", "character", "check", "column", "connection", "day", "error", "file", "finding", "hour"),
    *("line", "member", "object", "origin", "parameter", "publication", "reconnect", "record", "replica", "request"),
    *("role", "row", "sample", "second", "shard", "slot", "standby", "step", "stream", "subscription", "table"),
    *("target", "time", "transaction", "value", "walsender", "worker"),
}
# The number in these is never one.
NEVER_ONE = {
    "{age} transactions",
    "{used} transactions",
    "{len(self._text)} characters",
    "{len(text)} characters",
    "{_MOST_CHARACTERS} characters",
    "{_NAME_BYTES} bytes",
    "{_MAX_FRUITLESS} connections",
    "{format_duration(criteria.idle_seconds)} samples",
}


def test_a_number_agrees_with_its_noun() -> None:
    assert [counted(number, "slot") for number in (0, 1, 2)] == ["0 slots", "1 slot", "2 slots"]
    assert counted(1_000_000, "transaction", grouped=True) == "1,000,000 transactions"
    assert (form(1, "is", "are"), form(0, "is", "are")) == ("is", "are")


def test_of_many_names_only_the_first_are_written() -> None:
    names = [f"s{number}" for number in range(2000)]
    assert named(names[:3]) == named(names[:3], most=3) == "s0, s1, s2"
    assert named(names, most=2) == "s0, s1 and 1,998 more" and named(["a", "b"], most=1) == "a and 1 more"


def plurals(path: Path) -> Iterator[str]:
    """Yield each ``{number} nouns`` of the f-strings of a module whose number may be one."""
    tree = ast.parse(path.read_text())
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "form")
    agreed = {id(part) for call in calls for part in ast.walk(call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr) or id(node) in agreed:
            continue
        for value, after in zip(node.values, node.values[1:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            words = str(after.value).split(" ", 3)
            for noun in words[1:3] if words[0] == "" else ():
                if noun.rstrip(",;:.)").removesuffix("s") in NOUNS and noun.rstrip(",;:.)").endswith("s"):
                    yield f"{{{ast.unparse(value.value)}}} {noun.rstrip(',;:.)')}"
                if noun == words[1] and noun != "more":
                    break


@pytest.mark.parametrize("package", sorted(path.name for path in (ROOT / "rdsrepl").iterdir() if path.is_dir()))
def test_every_count_in_a_text_uses_counted(package: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {text}"
        for path in (ROOT / "rdsrepl" / package).rglob("*.py")
        if "sandbox" not in path.parts
        for text in plurals(path)
        if text not in NEVER_ONE
    }
    assert found == set()
