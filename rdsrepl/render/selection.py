"""Select from a list what a person wants to see: conditions, an order, a JMESPath expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rdsrepl.errors import BadValue
from rdsrepl.render.fields import Field, Fields, FieldType, condition, fields_of, ordering
from rdsrepl.render.tables import Column

_NAME_ONLY: Final = (Field("name", FieldType.text),)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list prints.

    Attributes:
        row_type: the dataclass of its rows; the fields of the JSON document.
        columns: the columns of its table; the first one, or ``name``, is what ``-o name`` prints.
        empty: printed in place of a table without rows.
        name: the field that ``-o name`` prints; default: that of the first column.
    """

    row_type: type
    columns: Sequence[Column]
    empty: str
    name: str | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""
        return _NAME_ONLY if self.row_type is str else fields_of(self.row_type)

    def found(self, typed: str) -> Field:
        """Return the field that a person means."""
        return self._lookup().find(typed)

    def named(self, row: Any) -> str:
        """Return the name of a row."""
        path = self.name or self.columns[0].field
        assert path is not None
        return str(row if self.row_type is str else Field(path, FieldType.text).value(row))

    def select(
        self, *, conditions: Iterable[str] = (), sort_by: str | None = None
    ) -> Callable[[Sequence[Any]], list[Any]]:
        """Return a function that filters and sorts rows.

        Raises:
            BadValue: a condition or the order is not valid.
        """
        lookup = self._lookup()
        tests = [condition(lookup, words) for words in conditions]
        ordered = ordering(lookup, sort_by) if sort_by is not None else list
        return lambda rows: ordered(row for row in rows if all(test(row) for test in tests))

    def _lookup(self) -> Fields:
        return Fields(self.fields, {one.heading: one.field for one in self.columns if one.field is not None})


def query(expression: str) -> Callable[[Any], Any]:
    """Return a function that applies a JMESPath expression to a document, as ``--query`` of the AWS CLI does.

    Raises:
        BadValue: EXPRESSION is not valid, or does not apply to the document.
    """
    import jmespath
    from jmespath import exceptions

    try:
        compiled = jmespath.compile(expression)
    except exceptions.JMESPathError as exc:
        raise _invalid(expression, exc) from None

    def apply(document: Any) -> Any:
        try:
            return compiled.search(document)
        except exceptions.JMESPathError as exc:
            raise _invalid(expression, exc) from None

    return apply


def _invalid(expression: str, exc: Exception) -> BadValue:
    place = getattr(exc, "lex_position", getattr(exc, "lexer_position", None))
    at = "" if place is None else f" at position {place + 1}"
    reason = re.sub(
        r"^(Invalid|Bad) jmespath expression: |: Parse error at column.*", "", str(exc).split("\n")[0], flags=re.I
    )
    return BadValue(
        f"--query {expression!r} is not valid{at}: {reason.rstrip(':.')}",
        hint="for example --query '[?active].slot_name'",
    )
