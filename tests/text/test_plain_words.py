"""The words that were replaced stay out of the code, the messages and the documentation.

The left columns of the two tables below come from the design's lists of names and texts. The check finds the words, not
the style: that a sentence is plain is for the reader to judge.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

#: Names that may not be used for anything in the package.
NAMES = frozenset(
    {
        *("_THE_END", "_WEATHER", "_followers", "Around", "Beat", "Bounds", "Breakage", "Consent", "Exposure", "Fleet"),
        *("Here", "Holding", "Job", "Looker", "Noun", "Obstacle", "Reader", "Standing", "Surroundings", "Typed"),
        *("Verdict", "Watched", "Witness", "Writer", "ask_for", "bare_client", "can_ask", "founding", "hurried"),
        *("is_founded", "is_sweeping", "likeness", "roster", "settle", "surroundings"),
    }
)
#: Names that may not be defined at the top level of a module, because they say nothing there.
TOP_LEVEL = frozenset(
    {"around", "evaluated", "identity", "judge", "located", "look", "moves", "shared", "tell", "where", "words"}
)

#: Phrases that no text, comment or page may contain. The operating system's user nobody stands in quotes or after USER.
PHRASES = (
    r"(?<![`\"'])(?<!USER )\b[Nn]obody\b(?![`\"'])|somebody|anybody|[Ww]hoever",
    r"for ever\b|\banew\b|\bshall\b|\bmend(s|ed|ing)?\b|weather",
    r"become of the data|come to be so|given (it )?up by|has given it up|wait(ing)? for company",
    r"nothing moved at|not for 1m|nothing of it holds|prove it over SQL|\blet go\b",
    r"reader of standard output went away|nothing found|the only one here|\bbent by|is delivered at",
    r"can do so no more|passed over:|Look again|[Bb]ad weather|\bof late\b|thereby",
)

PAGES = (
    *("README.md", "CHANGELOG.md", "ARCHITECTURE.md", "CONTRIBUTING.md"),
    *("Makefile", "pyproject.toml", "tests/README.md", "tests/install-postgres.sh"),
)


def _sources() -> Iterator[Path]:
    for folder in ("rdsrepl", "tests"):
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__))


def _texts() -> Iterator[Path]:
    yield from _sources()
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from (ROOT / page for page in PAGES)
    yield from sorted((ROOT / "completions").iterdir())


def old_names(tree: ast.Module) -> set[str]:
    """Return the old names that a module uses or defines."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    used |= {node.name for node in ast.walk(tree) if isinstance(node, definitions)}
    defined = {node.name for node in tree.body if isinstance(node, definitions)}
    return used & NAMES | defined & TOP_LEVEL


def old_phrases(text: str) -> list[str]:
    """Return the old phrases of a text, also those that a line break divides."""
    joined = re.sub(r"\s+(#\s)?\s*", " ", text)
    return [match[0] for phrase in PHRASES for match in re.finditer(phrase, joined)]


def test_no_old_names() -> None:
    found = {
        str(path.relative_to(ROOT)): sorted(names)
        for path in _sources()
        if path.is_relative_to(ROOT / "rdsrepl") and (names := old_names(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_no_old_phrases() -> None:
    found = {
        str(path.relative_to(ROOT)): phrases
        for path in _texts()
        if (phrases := old_phrases(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize("text", ["somebody reads it", "the slot was let\n    # go", "a value to mend"])
def test_old_phrases_are_found(text: str) -> None:
    assert old_phrases(text)


def test_old_names_are_found() -> None:
    tree = ast.parse("class Fleet:\n    where = 1\ndef where(): pass\ndef f(settle): pass")
    assert old_names(tree) == {"Fleet", "where", "settle"}
