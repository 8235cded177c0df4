"""Parse the command of a step as a shell does, but refuse everything that requires a shell.

The text is split into words before variables are substituted, so a value is always one word or a part of one, whatever
it contains. Pipes, redirections, substitutions and patterns are refused when the page is read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_NEEDS_A_SHELL: Final = frozenset("|&;<>()`*?[]{}~!#")
_REFERENCE: Final = re.compile(r"\$(?:\{([A-Z][A-Z0-9_]*)\}|([A-Z][A-Z0-9_]*))")
# In prose, a reference can be in quotes, which the quoted value replaces.
_QUOTED_REFERENCE: Final = re.compile(rf'"{_REFERENCE.pattern}"|{_REFERENCE.pattern}')
_ANYTHING: Final = re.compile(r"\A… | …\Z|…")


class InvalidCommand(ValueError):
    """The text cannot be run without a shell.

    Attributes:
        line: the line of the text, counted from 0.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Reference:
    """A variable in a word, by its name on the page: ``SLOT``."""

    name: str


Word = tuple[str | Reference, ...]


def parse(text: str) -> tuple[Word, ...]:
    """Split a command into words.

    Raises:
        InvalidCommand: the text is empty, contains more than one command, or requires a shell.
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
            raise refuse("a step has only one command")
        if char.isspace():
            if inside:
                words.append(tuple(parts))
            parts, inside, position = [], False, position + 1
            continue
        inside = True
        if char == "'":
            end = text.find("'", position + 1)
            if end < 0:
                raise refuse("unterminated quote")
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
                    raise refuse(f"{text[position]} in quotes is not a variable such as $SLOT")
                else:
                    position += text[position] == "\\" and text[position + 1 : position + 2] in tuple('$`"\\')
                    add(text[position : position + 1])
                    position += 1
            if position >= len(text):
                raise refuse("unterminated quote")
            position += 1
        elif char == "\\":
            add(text[position + 1 : position + 2])
            position += 2
        elif char == "$":
            raise refuse('a variable requires quotes: write "$NAME"')
        elif char in _NEEDS_A_SHELL:
            raise refuse(f"{char} requires a shell")
        else:
            add(char)
            position += 1
    if inside:
        words.append(tuple(parts))
    if not words:
        raise refuse("no command")
    return tuple(words)


def references(words: Sequence[Word]) -> tuple[str, ...]:
    """Return the names of the variables of a command, each once."""
    return tuple(dict.fromkeys(part.name for word in words for part in word if isinstance(part, Reference)))


def substitute(words: Sequence[Word], values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words with the values of their variables; each word stays one word."""
    return tuple("".join(values[part.name] if isinstance(part, Reference) else part for part in word) for word in words)


def substitute_text(text: str, values: Mapping[str, str]) -> str:
    """Return prose with the values of its known variables, quoted for a shell."""

    def value(match: re.Match[str]) -> str:
        name = next(group for group in match.groups() if group)
        return shlex.quote(values[name]) if name in values else match[0]

    return _QUOTED_REFERENCE.sub(value, text)


class Expectation:
    """The lines that the output of a step must contain, in this order; checked while the output arrives.

    ``…`` matches any text, including none. All whitespace is equal. Other lines can be in between.
    """

    def __init__(self, lines: Sequence[str], values: Mapping[str, str]) -> None:
        self._wanted = [_REFERENCE.sub(lambda m: values.get(m[1] or m[2], m[0]), line) for line in lines]
        self._patterns = [_pattern(line) for line in self._wanted]
        self._matched = 0

    def see(self, line: str) -> None:
        """Check the next line of the output."""
        if self._matched < len(self._patterns) and self._patterns[self._matched].fullmatch(" ".join(line.split())):
            self._matched += 1

    @property
    def missing(self) -> str | None:
        """The first line that is missing; None if all lines were printed."""
        return None if self._matched == len(self._wanted) else self._wanted[self._matched]


def _pattern(line: str) -> re.Pattern[str]:
    # At an end of the line, … also matches the space beside it.
    pieces = _ANYTHING.split(" ".join(line.split()))
    return re.compile(".*".join(map(re.escape, pieces)))
