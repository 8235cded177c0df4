"""The fields of rows: what ``--sort-by`` and ``--filter`` name, and how their values compare.

Fields have the names of the JSON document; the heading of a column means the field that it shows. All of it is checked
before anything is read.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.render.documents import document
from rdsrepl.text.suggestions import closest
from rdsrepl.units import parse_boolean, parse_duration, parse_size


class FieldType(StrEnum):
    """How the values of a field compare."""

    text = "a text"
    boolean = "yes or no"
    number = "a number"
    size = "a size"
    duration = "a duration"
    time = "a time"
    lsn = "an LSN"
    list = "a list"


_TYPES: Final = {
    "bool": FieldType.boolean,
    "int": FieldType.number,
    "float": FieldType.number,
    "Decimal": FieldType.number,
    "datetime": FieldType.time,
    "Lsn": FieldType.lsn,
    "tuple": FieldType.list,
    "list": FieldType.list,
}
_FILTER: Final = re.compile(r"([^=!<>~]+?)\s*(==|!=|<>|>=|<=|=~|!~|=|>|<|~)\s*(.*)\Z", re.S)
_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_SAME: Final = {"==": "=", "<>": "!=", "=~": "~"}
Row = Any


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a row; ``path`` is its name in the JSON document, with dots between nested objects."""

    path: str
    type: FieldType

    def value(self, row: Row) -> Any:
        """Return the value in a row; None where it has none. A row that is a text is its own name."""
        if isinstance(row, str):
            return row
        for name in self.path.split("."):
            row = row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
        return row


def fields_of(row_type: type) -> tuple[Field, ...]:
    """Return the fields of a dataclass, those of nested dataclasses as well."""
    found: list[Field] = []
    for one in fields(row_type):
        annotation = one.type if isinstance(one.type, str) else getattr(one.type, "__name__", "")
        base = annotation.removesuffix(" | None").partition("[")[0]
        nested = getattr(sys.modules[row_type.__module__], base, None)
        if isinstance(nested, type) and is_dataclass(nested):
            found += [Field(f"{one.name}.{inner.path}", inner.type) for inner in fields_of(nested)]
        else:
            found.append(Field(one.name, _field_type(one.name, base)))
    return tuple(found)


def _field_type(name: str, base: str) -> FieldType:
    kind = _TYPES.get(base, FieldType.text)
    if kind is FieldType.number and name.endswith(("_bytes", "_size")):
        return FieldType.size
    return FieldType.duration if kind is FieldType.number and name.endswith("_seconds") else kind


class Fields:
    """Finds the fields of a list by what a person types."""

    def __init__(self, known: Sequence[Field], headings: Mapping[str, str]) -> None:
        """Take the fields, and the heading of each column with the path that it shows."""
        self._by_path = {one.path: one for one in known}
        self._words: dict[str, str] = {}
        for path in self._by_path:
            self._words.setdefault(_plain(path.rpartition(".")[2]), path)
        self._words |= {_plain(path): path for path in self._by_path}
        for heading, path in headings.items():
            self._words.setdefault(_plain(heading), path)

    def find(self, typed: str) -> Field:
        """Return the field that a person means: its path, its last part, a heading, or kubectl's ``{.field}``.

        Raises:
            BadValue: the rows have no such field.
        """
        word = typed.strip().removeprefix("{").removesuffix("}").removeprefix("$").removeprefix(".").removeprefix("[].")
        if path := self._words.get(_plain(word)):
            return self._by_path[path]
        near = closest(_plain(word), self._words, cutoff=0.5)
        suggestion = f"did you mean {self._words[near]}? " if near else ""
        raise BadValue(f"no field {typed.strip()}", hint=f"{suggestion}the fields are {', '.join(self._by_path)}")


def _plain(word: str) -> str:
    return re.sub(r"[\s_-]+", "_", word.strip().lower())


def ordering(fields: Fields, words: str) -> Callable[[Iterable[Row]], list[Row]]:
    """Return a function that sorts rows by ``FIELD[,FIELD…]``; ``-FIELD`` and ``FIELD:desc`` sort in descending order.

    Rows without a value are last in both orders.

    Raises:
        BadValue: the rows have no such field.
    """
    keys: list[tuple[Field, bool]] = []
    for word in words.split(","):
        name, _, direction = word.strip().partition(":")
        if direction not in ("", "asc", "desc"):
            raise BadValue(f"{word.strip()!r} is not FIELD:asc or FIELD:desc", hint=f"--sort-by {name}:desc")
        keys.append((fields.find(name.removeprefix("-")), direction == "desc" or name.startswith("-")))

    def ordered(rows: Iterable[Row]) -> list[Row]:
        result = list(rows)
        for field, descending in reversed(keys):
            known = [row for row in result if field.value(row) is not None]
            known.sort(key=lambda row: _comparable(field, field.value(row)), reverse=descending)
            result = known + [row for row in result if field.value(row) is None]
        return result

    return ordered


def _comparable(field: Field, value: Any) -> Any:
    if field.type in (FieldType.text, FieldType.list):
        plain = document(value)
        return ", ".join(map(str, plain)) if isinstance(plain, list) else str(plain)
    return value


def condition(fields: Fields, words: str) -> Callable[[Row], bool]:
    """Return the condition that ``FIELD=VALUE`` means; also ``!=``, ``>``, ``<``, ``>=``, ``<=``, ``~`` and ``!~``.

    ``~`` searches for a regular expression. A list matches if one of its members does. An empty VALUE means no value.

    Raises:
        BadValue: no operator, no such field, or a value that a field of this type cannot have.
    """
    match = _FILTER.match(words)
    if match is None:
        raise BadValue(
            f"{words!r} is not FIELD=VALUE",
            hint="quote it for the shell: --filter 'FIELD>VALUE'; also =, !=, <, >=, <=, ~ (regular expression)",
        )
    field, sign, text = fields.find(match[1]), _SAME.get(match[2], match[2]), match[3].strip()
    if sign in ("~", "!~"):
        return _matching(field, text, wanted=sign == "~")
    if not text and sign in ("=", "!="):
        return lambda row: (field.value(row) in (None, "", (), [])) is (sign == "=")
    if field.type in (FieldType.boolean, FieldType.list) and sign not in ("=", "!="):
        raise BadValue(f"{field.path} is {field.type}: {sign} does not apply", hint="use =, != or ~")
    if field.type is FieldType.time and (age := _age(text)) is not None:
        # More than 7 days: longer ago.
        return lambda row: _holds(field.value(row), lambda at: _compare(sign, _now(at) - at, age))
    wanted = _parsed(field, text)
    if field.type is FieldType.list:
        return lambda row: (wanted in map(str, document(field.value(row)) or ())) is (sign == "=")
    if sign == "!=":
        return lambda row: _comparable(field, field.value(row)) != wanted if field.value(row) is not None else True
    return lambda row: _holds(field.value(row), lambda value: _compare(sign, _comparable(field, value), wanted))


def _holds(value: Any, test: Callable[[Any], bool]) -> bool:
    return value is not None and test(value)


def _compare(sign: str, value: Any, wanted: Any) -> bool:
    return _OPERATORS[sign](value, wanted)


def _matching(field: Field, pattern: str, *, wanted: bool) -> Callable[[Row], bool]:
    try:
        search = re.compile(pattern).search
    except re.error as exc:
        at = "" if exc.pos is None else f" at position {exc.pos + 1}"
        raise BadValue(
            f"{pattern!r} is not a regular expression: {exc.msg}{at}", hint="escape special characters with a backslash"
        ) from None

    def test(row: Row) -> bool:
        value = document(field.value(row))
        texts = value if isinstance(value, list) else [] if value is None else [value]
        return any(search(str(one)) for one in texts) is wanted

    return test


def _parsed(field: Field, text: str) -> Any:
    """Return a value of the type of a field."""
    try:
        match field.type:
            case FieldType.boolean:
                value = parse_boolean(text)
                if value is None:
                    raise BadValue(f"{text!r} is not yes or no")
                return value
            case FieldType.size:
                return int(text) if text.isdecimal() else parse_size(text)
            case FieldType.duration:
                return parse_duration(text)
            case FieldType.number:
                return float(text)
            case FieldType.time:
                moment = datetime.fromisoformat(text)
                return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            case FieldType.lsn:
                return Lsn.parse(text)
            case _:
                return text
    except BadValue as exc:
        raise BadValue(f"{field.path}: {exc.message}", hint=exc.hint or "give yes or no") from None
    except ValueError:
        example = "2026-01-31T12:00Z, or a duration such as 7d" if field.type is FieldType.time else "42"
        raise BadValue(f"{field.path}: {text!r} is not {field.type}", hint=f"for example {example}") from None


def _age(text: str) -> Any:
    from datetime import timedelta

    try:
        return None if text.isdecimal() else timedelta(seconds=parse_duration(text))
    except BadValue:
        return None


def _now(like: datetime) -> datetime:
    return datetime.now(UTC) if like.tzinfo else datetime.now(UTC).replace(tzinfo=None)
