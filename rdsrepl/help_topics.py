"""The pages of ``docs/`` as help topics: the same text in a browser and on a terminal.

A wheel has them inside the package; an editable installation has them in the source tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rdsrepl.errors import NotFound
from rdsrepl.text.suggestions import closest

_HERE: Final = Path(__file__).parent
# Generated from --help, which prints the same text.
_NO_TOPICS: Final = frozenset({"reference"})
_LINK: Final = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]*)\)")


@dataclass(frozen=True, slots=True)
class Topic:
    """A page.

    Attributes:
        topic: its name in ``rdsrepl help``: the file name without suffix.
        title: its first heading, without markup.
    """

    topic: str
    title: str


def directory() -> Path:
    """Return the directory of the pages.

    Raises:
        NotFound: this installation has no pages.
    """
    for place in (_HERE / "docs", _HERE.parent / "docs"):
        if (place / "exit-codes.md").is_file():
            return place
    raise NotFound("the help pages are not installed", hint="read the help of the commands: rdsrepl --help")


def names() -> list[str]:
    """Return the names of the topics, sorted; see ``directory``."""
    return sorted(path.stem for path in directory().glob("*.md") if path.stem not in _NO_TOPICS)


def ls() -> list[Topic]:
    """Return the topics, sorted by name; see ``directory``."""
    return [Topic(name, _title(read(name))) for name in names()]


def find(words: Iterable[str]) -> str | None:
    """Return the topic that WORDS name (``exit codes`` names ``exit-codes``); None if it does not exist."""
    name = "-".join(words).lower().replace("_", "-").replace(" ", "-").removesuffix(".md")
    return name if name in names() else None


def read(name: str) -> str:
    """Return the Markdown of a page; NAME is one of ``names``."""
    return (directory() / f"{name}.md").read_text(encoding="utf-8")


def for_terminal(text: str) -> str:
    """Return Markdown for a terminal: each link becomes the command that prints its page."""
    known = set(names())

    def as_command(match: re.Match[str]) -> str:
        words, goal = match.groups()
        path = goal.partition("#")[0]
        name = path.removesuffix(".md")
        if name in known:
            return f"{words} (`rdsrepl help {name}`)"
        if path.endswith(".md") and name.rpartition("/")[0].endswith("runbooks"):
            return f"{words} (`rdsrepl runbook show {name.rpartition('/')[2]}`)"
        return f"{words} ({goal})" if "://" in goal else words

    return _LINK.sub(as_command, text)


def unknown(words: Iterable[str], commands: Iterable[str]) -> NotFound:
    """Return the error for an unknown topic, with a similar name or the pages that mention the words.

    Args:
        words: the words that were typed.
        commands: other names that could be meant: ``slot``, ``slot tail``, ….
    """
    asked = " ".join(words)
    pages = {name: f"rdsrepl help {name}" for name in [*names(), *commands]}
    pages |= {path.stem: f"rdsrepl runbook show {path.stem}" for path in (directory() / "runbooks").glob("*.md")}
    near = closest(asked, pages)
    if near is not None:
        hint = f"did you mean {pages[near]}?"
    elif mentions := [name for name in names() if asked.lower() in read(name).lower()]:
        hint = "pages that mention it: " + ", ".join(f"rdsrepl help {name}" for name in mentions[:4])
    else:
        hint = "list the topics: rdsrepl help"
    return NotFound(f"{asked!r} is not a help topic", hint=hint)


def _title(text: str) -> str:
    heading = text.partition("\n")[0].removeprefix("# ")
    return heading.replace("`", "").strip()
