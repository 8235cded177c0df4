"""The pages of ``docs/`` as help topics: one source for who reads them in a browser and who is at a terminal.

A wheel carries them inside the package; an editable installation finds them in the source tree.
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
# Made from the commands' own help, which is at hand anyway.
_NO_TOPICS: Final = frozenset({"reference"})
_LINK: Final = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]*)\)")


@dataclass(frozen=True, slots=True)
class Topic:
    """A page.

    Attributes:
        topic: what ``rdsrepl help`` calls it: the file's name.
        title: its first heading, plain.
    """

    topic: str
    title: str


def directory() -> Path:
    """Return where the pages are.

    Raises:
        NotFound: this installation has none.
    """
    for place in (_HERE / "docs", _HERE.parent / "docs"):
        if (place / "exit-codes.md").is_file():
            return place
    raise NotFound("this installation of rdsrepl came without its pages", hint="commands explain themselves: --help")


def names() -> list[str]:
    """Return the topics' names, in order; see ``directory``."""
    return sorted(path.stem for path in directory().glob("*.md") if path.stem not in _NO_TOPICS)


def ls() -> list[Topic]:
    """Return all topics by name; see ``directory``."""
    return [Topic(name, _title(read(name))) for name in names()]


def find(words: Iterable[str]) -> str | None:
    """Return the topic that words name: ``exit codes`` is ``exit-codes``; None where they name none."""
    name = "-".join(words).lower().replace("_", "-").replace(" ", "-").removesuffix(".md")
    return name if name in names() else None


def read(name: str) -> str:
    """Return a page's Markdown; NAME is one of ``names``."""
    return (directory() / f"{name}.md").read_text(encoding="utf-8")


def for_terminal(text: str) -> str:
    """Return Markdown whose links lead somewhere on a terminal: to the command that prints the page."""
    known = set(names())

    def led(match: re.Match[str]) -> str:
        words, goal = match.groups()
        path = goal.partition("#")[0]
        name = path.removesuffix(".md")
        if name in known:
            return f"{words} (`rdsrepl help {name}`)"
        if path.endswith(".md") and name.rpartition("/")[0].endswith("runbooks"):
            return f"{words} (`rdsrepl runbook show {name.rpartition('/')[2]}`)"
        return f"{words} ({goal})" if "://" in goal else words

    return _LINK.sub(led, text)


def unknown(words: Iterable[str], commands: Iterable[str]) -> NotFound:
    """Return the error that there is no such topic, with what comes near, or the pages that mention it.

    Args:
        words: what was asked for.
        commands: what else could have been meant: ``slot``, ``slot tail``, ….
    """
    asked = " ".join(words)
    pages = {name: f"rdsrepl help {name}" for name in [*names(), *commands]}
    pages |= {path.stem: f"rdsrepl runbook show {path.stem}" for path in (directory() / "runbooks").glob("*.md")}
    near = closest(asked, pages)
    if near is not None:
        hint = f"did you mean {pages[near]}?"
    elif found := [name for name in names() if asked.lower() in read(name).lower()]:
        hint = "pages that mention it: " + ", ".join(f"rdsrepl help {name}" for name in found[:4])
    else:
        hint = "rdsrepl help lists the topics"
    return NotFound(f"no help on {asked!r}", hint=hint)


def _title(text: str) -> str:
    heading = text.partition("\n")[0].removeprefix("# ")
    return heading.replace("`", "").strip()
