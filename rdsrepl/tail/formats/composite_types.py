"""The definitions of composite types, which may change while changes of their tables are on their way.

The catalogue has the present state; a change may be older. So

- a composite type that was altered after its creation is used only for transactions that are newer than that: the
  newest ``xmin`` of its ``pg_attribute`` rows is compared with the transaction's id;
- once for each batch of messages, after they were received, the ``pg_attribute`` rows are compared with the ones that
  were read before, so that the definition in use is never older than a change;
- a value is written as text (``AsText``) if its type was dropped, its definition is newer, or its text does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from rdsrepl.errors import Denied
from rdsrepl.tail.formats.catalog_session import CatalogSession
from rdsrepl.tail.formats.nested_values import array, composite
from rdsrepl.tail.formats.values import Conversion, Convert, as_text, checked

#: the properties of a type, by its OID.
TYPE = """
SELECT t.typtype::text, t.typelem, t.typbasetype, t.typrelid, e.typdelim::text,
       t.typlen = -1 AND t.typelem <> 0 AND t.typcategory = 'A'
  FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
 WHERE t.oid = %s
"""
# The transaction id is null if CREATE TYPE wrote the row, in one command with the type itself, and if it is more than
# 2^31 transactions old: every change that is still to be streamed is newer.
_ATTRIBUTES = """
SELECT a.attname, a.atttypid, a.attisdropped,
       CASE WHEN pg_catalog.age(a.xmin) BETWEEN 0 AND 2147483646
             AND NOT (a.xmin = t.xmin AND a.cmin = t.cmin AND a.xmax = '0' AND t.xmax = '0')
            THEN a.xmin::text::bigint END,
       a.attnum, a.xmin::text, a.ctid::text
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.typrelid = a.attrelid
 WHERE a.attrelid = %s AND a.attnum > 0 ORDER BY a.attnum
"""
# The versions of the rows: every ALTER TYPE writes new ones.
_ROW_VERSIONS = """
SELECT attrelid, attnum, xmin::text, ctid::text FROM pg_catalog.pg_attribute
 WHERE attrelid = ANY (%s) AND attnum > 0 ORDER BY attrelid, attnum
"""
# (attnum, xmin, ctid) of each attribute
_Versions = tuple[tuple[int, str, str], ...]


@dataclass(frozen=True, slots=True)
class _Definition:
    """The definition of a type that contains composite types, when it was looked up.

    Attributes:
        convert: converts and checks text.
        altered_by: the newest transaction that altered one of the composite types; None if none was altered.
        versions: for each composite type (``pg_class.oid``), the versions of its attributes' rows that were read.
    """

    convert: Convert
    altered_by: int | None
    versions: Mapping[int, _Versions]


class CompositeTypes:
    """Converts values of composite types, and of arrays and domains that contain them."""

    def __init__(
        self,
        session: CatalogSession,
        conversion: Callable[[int], Conversion],
        xid: Callable[[], int | None],
        denied: Callable[[Denied], None],
    ) -> None:
        """Prepare.

        Args:
            session: reads the catalogue.
            conversion: returns the conversion of a type by its OID.
            xid: returns the transaction that is being decoded; None if it is not known.
            denied: called when the role may not read the catalogue; raises any other refusal.
        """
        self._session = session
        self._conversion = conversion
        self._xid = xid
        self._denied = denied
        self._definitions: dict[int, _Definition | None] = {}
        self._is_current = False

    def batch_received(self) -> None:
        """Record that more messages were received: their types may be newer than what was looked up."""
        self._is_current = False

    def converter(self, oid: int) -> Convert:
        """Return the conversion of a type that contains composite types; it uses their present definitions."""

        def convert(text: str) -> str:
            definition = self._definition(oid)
            if definition is None or not _follows(self._xid(), definition.altered_by):
                return as_text(text)
            try:
                return definition.convert(text)
            except (ValueError, IndexError, RecursionError):
                return as_text(text)

        return convert

    def _definition(self, oid: int) -> _Definition | None:
        """Return a type's present definition; None if it was dropped."""
        if not self._is_current:
            self._forget_altered()
            self._is_current = True
        if oid not in self._definitions:
            try:
                self._definitions[oid] = self._define(oid)
            except Denied as exc:
                self._denied(exc)
                self._definitions[oid] = None
        return self._definitions[oid]

    def _forget_altered(self) -> None:
        """Discard the definitions of types that were altered or dropped since they were looked up."""
        relations = {relation for found in self._definitions.values() if found for relation in found.versions}
        now: dict[int, _Versions] = dict.fromkeys(relations, ())
        if relations:
            for relation, *version in self._session.query(_ROW_VERSIONS, (list(relations),)):
                now[relation] += (tuple(version),)
        self._definitions = {
            oid: found
            for oid, found in self._definitions.items()
            if found is not None and all(now[relation] == known for relation, known in found.versions.items())
        }

    def _define(self, oid: int) -> _Definition | None:
        conversion = self._conversion(oid)
        if not conversion.may_be_text:
            return _Definition(checked(conversion), None, {})
        rows = self._session.query(TYPE, (oid,))
        if not rows:
            return None
        typtype, element, base_type, relation, delimiter, is_array = rows[0]
        if is_array:
            inner = self._define(element)
            return None if inner is None else replace(inner, convert=array(inner.convert, delimiter))
        if typtype == "d":
            return self._define(base_type)
        attributes: list[tuple[str, Convert]] = []
        altered_by: int | None = None
        found = self._session.query(_ATTRIBUTES, (relation,))
        versions: dict[int, _Versions] = {relation: tuple((row[4], row[5], row[6]) for row in found)}
        for name, type_oid, is_dropped, xid, *_ in found:
            altered_by = _newer(altered_by, xid)
            if is_dropped:
                continue
            attribute = self._define(type_oid)
            if attribute is None:
                return None
            attributes.append((name, attribute.convert))
            altered_by = _newer(altered_by, attribute.altered_by)
            versions |= attribute.versions
        return _Definition(composite(attributes), altered_by, versions)


def _follows(xid: int | None, earlier: int | None) -> bool:
    """Return whether a transaction started after another one; ids wrap around (manual, section 25.1.5)."""
    return earlier is None or (xid is not None and (earlier - xid) & 0xFFFFFFFF >= 0x80000000)


def _newer(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return one if other is None else other
    return one if _follows(one, other) else other
