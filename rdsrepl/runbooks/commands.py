"""A page's command, read as a shell reads it, less everything that would need a shell.

Words are cut before variables are filled in, so a value is always (a part of) one word, whatever stands in it. What
only a shell can do (pipes, redirections, substitutions, patterns) is refused when the page is read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_NEEDS_A_SHELL: Final = frozenset("|&;<>()`*?[]{}~!#")
_REFERENCE: Final = re.compile(r"\$(?:\{([A-Z][A-Z0-9_]*)\}|([A-Z][A-Z0-9_]*))")
# In a text for people, a reference may stand in quotes that its value brings itself.
_QUOTED_REFERENCE: Final = re.compile(rf'"{_REFERENCE.pattern}"|{_REFERENCE.pattern}')
_ANYTHING: Final = re.compile(r"\A… | …\Z|…")


class InvalidCommand(ValueError):
    """What stands there cannot be run without a shell.

    Attributes:
        line: counted from 0, in the text that was read.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Reference:
    """A variable in a word, by the name it has on the page: ``SLOT``."""

    name: str


Word = tuple[str | Reference, ...]


def parse(text: str) -> tuple[Word, ...]:
    """Cut a command into words.

    Raises:
        NotACommand: it is none, more than one, or needs a shell.
    """
    words: list[Word] = []
    parts: list[str | Reference] = []
    inside, position = False, 0

    def add(piece: str | Reference) -> None:
        if isinstance(piece, str) and parts and isinstance(parts[-1], str):
            parts[-1] += piece
        else:
            parts.append(piece)

    def refuse(message: str) -> InvalidCommand:
        return InvalidCommand(message, text.count("\n", 0, position))

    text = text.rstrip()
    while position < len(text):
        char = text[position]
        if text.startswith("\\\n", position):
            position += 2
            continue
        if char == "\n":
            raise refuse("a second command: a step has one")
        if char.isspace():
            if inside:
                words.append(tuple(parts))
            parts, inside, position = [], False, position + 1
            continue
        inside = True
        if char == "'":
            end = text.find("'", position + 1)
            if end < 0:
                raise refuse("a quote that does not end")
            add(text[position + 1 : end])
            position = end + 1
        elif char == '"':
            position += 1
            add("")
            while position < len(text) and text[position] != '"':
                if reference := _REFERENCE.match(text, position):
                    add(Reference(reference[1] or reference[2]))
                    position = reference.end()
                elif text[position] in "$`":
                    raise refuse(f"{text[position]} in quotes that is no variable such as $SLOT")
                else:
                    position += text[position] == "\\" and text[position + 1 : position + 2] in tuple('$`"\\')
                    add(text[position : position + 1])
                    position += 1
            if position >= len(text):
                raise refuse("a quote that does not end")
            position += 1
        elif char == "\\":
            add(text[position + 1 : position + 2])
            position += 2
        elif char == "$":
            raise refuse('a variable without quotes: write "$NAME"')
        elif char in _NEEDS_A_SHELL:
            raise refuse(f"{char} needs a shell, and there is none")
        else:
            add(char)
            position += 1
    if inside:
        words.append(tuple(parts))
    if not words:
        raise refuse("no command")
    return tuple(words)


def references(words: Sequence[Word]) -> tuple[str, ...]:
    """Return the variables of a command, each once."""
    return tuple(dict.fromkeys(part.name for word in words for part in word if isinstance(part, Reference)))


def substitute(words: Sequence[Word], values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words with their variables filled in, one word for one."""
    return tuple("".join(values[part.name] if isinstance(part, Reference) else part for part in word) for word in words)


def substitute_text(text: str, values: Mapping[str, str]) -> str:
    """Return a text for people with its known variables filled in, each quoted as a shell needs it."""

    def value(match: re.Match[str]) -> str:
        name = next(group for group in match.groups() if group)
        return shlex.quote(values[name]) if name in values else match[0]

    return _QUOTED_REFERENCE.sub(value, text)


class Expectation:
    """The lines a page says the output has, sought in their order while the output comes.

    ``…`` stands for anything, or nothing; any blanks equal any others; other lines may stand between.
    """

    def __init__(self, lines: Sequence[str], values: Mapping[str, str]) -> None:
        self._wanted = [_REFERENCE.sub(lambda m: values.get(m[1] or m[2], m[0]), line) for line in lines]
        self._patterns = [_pattern(line) for line in self._wanted]
        self._found = 0

    def see(self, line: str) -> None:
        """Look at the next line of the output."""
        if self._found < len(self._patterns) and self._patterns[self._found].fullmatch(" ".join(line.split())):
            self._found += 1

    @property
    def missing(self) -> str | None:
        """The first line that has not come; None when all have."""
        return None if self._found == len(self._wanted) else self._wanted[self._found]


def _pattern(line: str) -> re.Pattern[str]:
    # At either end, the blank beside it is (part of) anything, too.
    pieces = _ANYTHING.split(" ".join(line.split()))
    return re.compile(".*".join(map(re.escape, pieces)))
