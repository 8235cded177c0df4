"""Tell the options of psql from those of ``rdsrepl`` behind ``rdsrepl psql``, so that no ``--`` is needed.

psql's own rules apply (getopt_long): short options can be joined (``-Atc``), and a value can be attached (``-fx.sql``).
Where a letter belongs to both, what a user of psql expects decides:

===========  ==========================================================================================
``-d -U``    the database and the role: the same in both; ``--username`` is ``--user``
``-q``       quiet, in both
``-h``       help, as on every level; the host is the target's
``-t NAME``  our target; ``-t`` without a name is psql's, tuples only
``-v``       ours, verbose; with ``NAME=VALUE`` it is psql's, a variable
``-o FILE``  psql's output file
===========  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

from rdsrepl.errors import UsageError

_OWN_VALUES: Final = frozenset(
    {"--target", "--dsn", "--cluster", "--instance", "--dbname", "--user", "--profile", "--region"}
)
_OWN_FLAGS: Final = frozenset({"--verbose", "--no-color", "--help"})
_PSQL_VALUES: Final = frozenset(
    {"--command", "--field-separator", "--file", "--host", "--log-file", "--output", "--port", "--pset"}
    | {"--record-separator", "--set", "--variable", "--table-attr"}
)
_LETTERS_WITH_VALUE: Final = frozenset("cdfhFLopPRTUv")
_FORMATS: Final = frozenset({"table", "json", "yaml", "csv", "name", "wide"})


@dataclass(frozen=True, slots=True)
class Split:
    """A command line behind ``psql``: the words for ``rdsrepl``, those for psql, and which of our options are named."""

    own: list[str] = field(default_factory=list)
    psql: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)


def split(words: Sequence[str]) -> Split:
    """Split a command line; after ``--`` everything is psql's.

    As for psql, the first word that is no option is the database, and the second the role, unless an option names it.

    Raises:
        UsageError: ``-o`` has the name of one of our formats, or a host is given.
    """
    result, rest, operands = Split(), list(words), list[str]()
    while rest:
        word = rest.pop(0)
        if word == "--":
            result.psql.extend(rest)
            break
        if word.startswith("--"):
            _long(word, rest, result)
        elif word.startswith("-") and word != "-":
            _short(word, rest, result)
        else:
            operands.append(word)
    for name in ("--dbname", "--user"):
        if operands and name not in result.named:
            _own(result, name, operands.pop(0))
    result.psql.extend(operands)
    return result


def _own(result: Split, name: str, *value: str) -> None:
    """Add one of our options; a connection string can stand for the database, as in psql."""
    result.named.add(name)
    is_conninfo = name == "--dbname" and any("=" in one or "://" in one for one in value)
    result.own.extend(("--dsn" if is_conninfo else name, *value))


def _long(word: str, rest: list[str], result: Split) -> None:
    name, equals, value = word.partition("=")
    name = "--user" if name == "--username" else name
    takes_value = name in _OWN_VALUES or name in _PSQL_VALUES
    given = [value] if equals else [rest.pop(0)] if takes_value and rest else []
    if name in _OWN_VALUES or name in _OWN_FLAGS:
        _own(result, name, *given)
        return
    _check(name, given)
    if name == "--quiet":
        result.own.append(name)
    result.psql.extend((word,) if equals else (word, *given))


def _short(word: str, rest: list[str], result: Split) -> None:
    is_assignment = bool(rest) and "=" in rest[0] and not rest[0].startswith("-")
    if word == "-h" or (set(word[1:]) == {"v"} and not is_assignment):
        result.own.append(word)
        return
    if word == "-t" and rest and not rest[0].startswith("-"):
        _own(result, "--target", rest.pop(0))
        return
    flags = "".join(takewhile(lambda letter: letter not in _LETTERS_WITH_VALUE, word[1:]))
    if "q" in flags:
        result.own.append("-q")
    if flags == word[1:]:
        result.psql.append(word)
        return
    letter, attached = word[len(flags) + 1], word[len(flags) + 2 :]
    value = [attached] if attached else [rest.pop(0)] if rest else []
    if letter in "dU":
        result.psql.extend([f"-{flags}"] if flags else [])
        _own(result, {"d": "--dbname", "U": "--user"}[letter], *value)
        return
    _check(f"-{letter}", value)
    result.psql.extend((word,) if attached else (word, *value))


def _check(name: str, value: Sequence[str]) -> None:
    """Refuse what psql would take in another sense than a user of ``rdsrepl`` means."""
    if name in ("-h", "--host"):
        # psql would send the password of the target to that host.
        raise UsageError("the host of psql is that of the target", hint="name another server: --dsn 'host=HOST'")
    if name in ("-o", "--output") and value and value[0].lower() in _FORMATS:
        raise UsageError(
            f"psql has no output format {value[0]}: {name} names the file that psql writes to",
            hint=f"psql writes CSV with --csv; for a file of this name: {name} ./{value[0]}",
        )
