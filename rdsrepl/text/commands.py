"""Build commands for the user to paste: every value is quoted; a value with control characters is refused.

``find`` finds such commands again in a sentence.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rdsrepl.text.escapes import is_plain, shown
from rdsrepl.text.masking import mask

#: The environment variable in which a runbook tells its step which options it gave in the environment: these hold for
#: the step only, so the step's hints repeat them.
STEP_OPTIONS: Final = "_RDSREPL_STEP_OPTIONS"

_PROGRAM: Final = re.compile(r"(?<![\w./'\"-])rdsrepl(?= )")
# A word of a command line: quoted and unquoted pieces without a space between them.
_WORD: Final = re.compile(r"""[ ]+((?:'[^'\n]*'|"[^"\n]*"|[^\s'"])+)""")
_OPERATORS: Final = ("|", "&", ";", "(", ">", "<", "#")
# A command ends before these in a sentence; a colon or a full stop inside a word is a part of it.
_END: Final = re.compile(r"[;,)`.:]+\Z")


@dataclass(frozen=True, slots=True)
class Found:
    """A command of this program in a text.

    Attributes:
        start: where it begins.
        end: where it ends: at a ``;``, ``,`` or ``)`` after a word, an operator of the shell, or the end of the line.
        words: its words without quotes, without the name of the program.
    """

    start: int
    end: int
    words: tuple[str, ...]


def command(template: str, *values: object) -> str:
    """Return an ``rdsrepl`` command: ``command("slot drop {}", name)``; see ``shell``."""
    return shell(f"rdsrepl {template}", *values)


def shell(template: str, *values: object) -> str:
    """Return a command line for a shell.

    Args:
        template: the constant part, with ``{}`` for each value.
        values: any text; each becomes one word of the line. An operand that begins with a hyphen goes after ``--``.

    Returns:
        The line. If a value has control characters, which act on the terminal even inside quotes, a remark in
        parentheses that says so.
    """
    return _refused(values) or _line(template.split(" "), [str(value) for value in values])


def typed(words: Sequence[str]) -> str | None:
    """Return the command that was typed, for a hint to run it again.

    None if it cannot be pasted: a word has control characters, or a secret, which is not shown.
    """
    if any(not is_plain(word) or mask(word) != word for word in words):
        return None
    return shlex.join(["rdsrepl", *words])


def sql(template: str, *values: object) -> str:
    """Return a statement for psql, with ``{}`` for each string literal; or a remark, see ``shell``."""
    quoted = ["'" + str(value).replace("'", "''") + "'" for value in values]
    return _refused(values) or template.format(*quoted)


def ddl(template: str, *names: str) -> str:
    """Return a statement for psql, with ``{}`` for each identifier; or a remark, see ``shell``."""
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    return _refused(names) or template.format(*quoted)


def find(text: str) -> Iterator[Found]:
    """Yield the commands of this program in a text, in their order."""
    for program in _PROGRAM.finditer(text):
        end, words = program.end(), list[str]()
        while match := _WORD.match(text, end):
            raw = match[1]
            if raw.startswith(_OPERATORS):
                break
            word = _END.sub("", raw)
            end = match.start(1) + len(word)
            words += _unquoted(word)
            if word != raw:
                break
        yield Found(program.start(), end, tuple(words))


def _unquoted(word: str) -> list[str]:
    try:
        return shlex.split(word)
    except ValueError:  # a quote is not closed
        return [word]


def _refused(values: tuple[object, ...]) -> str:
    for value in values:
        if not is_plain(str(value)):
            return f"(no command is shown: '{shown(str(value))}' has characters that must not be pasted)"
    return ""


def _line(words: list[str], values: list[str]) -> str:
    rest = iter(values)
    placed: list[str] = []
    operands: list[str] = []
    for number, word in enumerate(words):
        text = _filled(word, lambda: next(rest))
        is_operand = word == "{}" and not words[number - 1].startswith("-")
        (operands if is_operand and (operands or text.startswith("-")) else placed).append(text)
    return " ".join([*placed, "--", *operands] if operands else placed)


def _filled(word: str, value: Callable[[], str]) -> str:
    """Return one word of a template; the text around ``{}`` is quoted together with the value."""
    if "{}" not in word:
        return word
    first, *pieces = word.split("{}")
    return shlex.quote(first + "".join(value() + piece for piece in pieces))
