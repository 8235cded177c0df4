"""Looks up types and tables in the server's catalogue when the stream does not describe them.

pgoutput sends only the OID of a column's type. That is enough for the common built-in types; for others (arrays,
domains, composites, the type names that wal2json prints) a short query on an ordinary connection is needed.

The catalogue has the present state; what that means for composite types, which may change, is in ``composite_types``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rdsrepl.errors import Denied, ServerError
from rdsrepl.tail.formats.catalog_session import CatalogSession
from rdsrepl.tail.formats.composite_types import TYPE, CompositeTypes
from rdsrepl.tail.formats.nested_values import array
from rdsrepl.tail.formats.values import (
    BUILT_IN,
    PLAIN,
    Conversion,
    ValueKind,
    as_text,
    checked,
    oidvector,
    to_json,
    vector,
)

if TYPE_CHECKING:
    from rdsrepl.config import Target

_DESCRIPTION = """
SELECT t.typname, t.typtype::text, t.typbasetype, t.typtypmod, t.typelem, e.typdelim::text,
       t.typlen = -1 AND t.typelem <> 0 AND t.typcategory = 'A'
  FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
 WHERE t.oid = %s
"""
_TYPE_MODIFIERS = """
SELECT a.attname, a.atttypid, a.atttypmod
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
"""
_NO_MONEY = "SELECT 0::pg_catalog.int4::pg_catalog.money::text"
# Runs with the role's own search_path, because its schemas are omitted from the names: no name may be looked up there.
_TYPE_NAMES = """
SELECT pg_catalog.format_type(c.oid, c.typmod)
  FROM ROWS FROM (pg_catalog.unnest(%s::pg_catalog.oid[]), pg_catalog.unnest(%s::pg_catalog.int4[]))
       WITH ORDINALITY AS c (oid, typmod, number)
 ORDER BY c.number
"""
_PRIMARY_KEY = """
SELECT a.attname FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_attribute a
    ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
 WHERE i.indrelid = %s AND i.indisprimary
"""
_REPLICA_IDENTITY = """
SELECT c.relreplident::text, a.attname,
       CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END, i.indisprimary
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident)
  LEFT JOIN pg_catalog.pg_attribute a
    ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
 WHERE n.nspname = %s AND c.relname = %s
"""
_BUILT_IN_BY_NAME = """
SELECT oid FROM pg_catalog.pg_type WHERE typname = %s AND typnamespace = 'pg_catalog'::pg_catalog.regnamespace
"""
_CONVERTED = """
SELECT pg_catalog.convert_from(c, pg_catalog.getdatabaseencoding())
  FROM pg_catalog.unnest(%s::bytea[]) WITH ORDINALITY AS given (c, number) ORDER BY number
"""
# As format_type prints a name: without a schema that is in the role's own search_path, with which this runs.
_QUOTED_NAME = """
SELECT pg_catalog.concat(
           CASE WHEN %(schema)s::pg_catalog.name OPERATOR(pg_catalog.=) ANY (pg_catalog.current_schemas(true)) THEN ''
           ELSE pg_catalog.concat(pg_catalog.quote_ident(%(schema)s::pg_catalog.text), '.') END,
           pg_catalog.quote_ident(%(name)s::pg_catalog.text))
"""
_INSUFFICIENT_PRIVILEGE = "42501"
# character_not_in_repertoire, untranslatable_character
_NO_TEXT = frozenset({"22021", "22P05"})
# Zero, with a currency's sign before or after it: 0, $0.00, 0,000 KD.
_ZERO_MONEY = re.compile(r"[^0-9]*0(?:[^0-9](0+))?[^0-9]*").fullmatch
# What format_type prints for an OID that is not a type's.
_NO_TYPE = "???"

_INT2VECTOR, _OIDVECTOR = 22, 30


_UNKNOWN_TYPE = Conversion(ValueKind.CONVERT, as_text, may_be_text=True)


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """A table's replica identity.

    Attributes:
        kind: ``pg_class.relreplident``: d, n, f or i.
        columns: the columns of its index; empty with NOTHING and FULL.
        primary_key: the primary key's columns.
    """

    kind: str
    columns: frozenset[str]
    primary_key: frozenset[str]


@dataclass(frozen=True, slots=True)
class TypeDescription:
    """The properties of a type that never change: not the attributes of a composite type.

    Attributes:
        name: without its schema.
        is_base, is_domain, is_array: the kind of type.
        base: a domain's base type; 0 for others.
        typmod: the modifier of a domain's base type; -1 without one.
        element, delimiter: of an array.
    """

    name: str
    is_base: bool = False
    is_domain: bool = False
    is_array: bool = False
    base: int = 0
    typmod: int = -1
    element: int = 0
    delimiter: str = ","


class Catalog:
    """A connection to the catalogue, opened at the first query, and a cache of the answers."""

    def __init__(self, target: Target, warn: Callable[[str], None] | None = None) -> None:
        """Prepare to query.

        Args:
            target: the database.
            warn: called once if the role may not read the catalogue's types.
        """
        self._session = CatalogSession(target)
        self._query = self._session.query
        self._warn = warn
        self._conversions: dict[int, Conversion] = {}
        self._descriptions: dict[int, TypeDescription] = {}
        self._money_digits: int | None = None
        self._composites = CompositeTypes(self._session, self.conversion, lambda: self.xid, self._warn_denied)
        self._names: dict[int, tuple[str, str]] = {}
        self._identities: dict[tuple[str, str], ReplicaIdentity | None] = {}
        #: the transaction that is being decoded; set by the decoder.
        self.xid: int | None = None

    def batch_received(self) -> None:
        """Record that more messages were received: their types may be newer than what was looked up."""
        self._composites.batch_received()
        self._identities.clear()

    def type_named(self, oid: int, schema: str, name: str) -> None:
        """Record a type's name for the changes that follow; for a domain the stream has its base type's."""
        self._names[oid] = (schema, name)

    def conversion(self, oid: int) -> Conversion:
        """Return a type's conversion to the ``json`` dialect."""
        if oid in BUILT_IN:
            return Conversion(BUILT_IN[oid])
        if oid in PLAIN:
            return Conversion(ValueKind.TEXT)
        found = self._conversions.get(oid)
        if found is None:
            found = self._look_up(oid)
            if found is not _UNKNOWN_TYPE:
                self._conversions[oid] = found
        return found

    def description(self, oid: int) -> TypeDescription | None:
        """Return a type's properties; None if it was dropped, or the role may not read the catalogue."""
        if oid not in self._descriptions:
            try:
                rows = self._query(_DESCRIPTION, (oid,))
            except Denied as exc:
                self._warn_denied(exc)
                return None
            if rows:
                name, kind, base, typmod, element, delimiter, is_array = rows[0]
                self._descriptions[oid] = TypeDescription(
                    name, kind == "b" and not is_array, kind == "d", is_array, base, typmod, element, delimiter or ","
                )
            else:
                name = self._names.get(oid, ("", ""))
                built_in = self._built_in(*name)
                if built_in is None:
                    return None
                self._descriptions[oid] = TypeDescription(name[1], is_domain=True, base=built_in)
        return self._descriptions[oid]

    def type_modifiers(self, schema: str, table: str) -> dict[tuple[str, int], int]:
        """Return a table's present type modifiers, by column name and type OID; empty if they may not be read."""
        try:
            return {(name, oid): typmod for name, oid, typmod in self._query(_TYPE_MODIFIERS, (schema, table))}
        except Denied as exc:
            self._warn_denied(exc)
            return {}

    def money_digits(self) -> int | None:
        """Return the number of digits after the point in money (``lc_monetary``); None if it cannot be determined."""
        if self._money_digits is None:
            printed = self._query(_NO_MONEY, ())[0][0]
            zeros = _ZERO_MONEY(printed)
            self._money_digits = len(zeros[1] or "") if zeros else None
        return self._money_digits

    def type_names(self, oids: Sequence[int], typmods: Sequence[int]) -> list[str]:
        """Return the SQL names of types with their modifiers, as ``format_type`` prints them.

        A type that was dropped since has its name in the stream; for a domain that is its base type's.
        """
        names: list[str] = []
        for (name,), oid, typmod in zip(
            self._query(_TYPE_NAMES, (list(oids), list(typmods)), own_path=True), oids, typmods, strict=True
        ):
            if name == _NO_TYPE and oid in self._names:
                schema, known = self._names[oid]
                base = self._built_in(schema, known)
                if base is not None:
                    name = self._query(_TYPE_NAMES, ([base], [typmod]))[0][0]
                else:
                    name = self._query(_QUOTED_NAME, {"schema": schema, "name": known}, own_path=True)[0][0]
            names.append(name)
        return names

    def primary_key(self, relation_oid: int) -> frozenset[str]:
        """Return the columns of a table's primary key; empty without one."""
        return frozenset(row[0] for row in self._query(_PRIMARY_KEY, (relation_oid,)))

    def replica_identity(self, schema: str, table: str) -> ReplicaIdentity | None:
        """Return a table's replica identity, looked up once for each batch; None if the table does not exist now."""
        name = (schema, table)
        if name not in self._identities:
            rows = self._query(_REPLICA_IDENTITY, name)
            columns = frozenset(column for _, column, is_identity, _ in rows if is_identity)
            primary_key = frozenset(column for _, column, _, is_primary in rows if is_primary)
            self._identities[name] = ReplicaIdentity(rows[0][0], columns, primary_key) if rows else None
        return self._identities[name]

    def converted(self, characters: Sequence[bytes]) -> list[str | None]:
        """Return the text of characters in the database's encoding; None if Unicode does not have the character."""
        try:
            return [row[0] for row in self._query(_CONVERTED, (list(characters),))]
        except ServerError as exc:
            if exc.sqlstate not in _NO_TEXT:
                raise
        if len(characters) == 1:
            return [None]
        return [text for character in characters for text in self.converted([character])]

    def close(self) -> None:
        """Close the connection if it is open."""
        self._session.close()

    def _look_up(self, oid: int) -> Conversion:
        try:
            return self._conversion_of(oid)
        except Denied as exc:
            self._warn_denied(exc)
            return _UNKNOWN_TYPE

    def _warn_denied(self, exc: Denied) -> None:
        """Warn once that the role may not read the catalogue; raise any other error."""
        if exc.sqlstate != _INSUFFICIENT_PRIVILEGE:
            raise exc
        if self._warn is not None:
            self._warn(
                f"could not look up types ({exc.message}): values of arrays, domains, composites and other types are "
                "written as text, and as_text lists their columns (remedy: GRANT SELECT ON pg_catalog.pg_type, "
                "pg_catalog.pg_attribute TO the role)"
            )
            self._warn = None

    def _conversion_of(self, oid: int) -> Conversion:
        if oid == _INT2VECTOR:
            return Conversion(ValueKind.CONVERT, vector)
        if oid == _OIDVECTOR:
            return Conversion(ValueKind.CONVERT, oidvector)
        rows = self._query(TYPE, (oid,))
        if not rows:
            base = self._built_in(*self._names.get(oid, ("", "")))
            return _UNKNOWN_TYPE if base is None else self.conversion(base)
        typtype, element, base_type, _, delimiter, is_array = rows[0]
        if is_array:
            inner = self.conversion(element)
            if not inner.may_be_text:
                return Conversion(
                    ValueKind.CONVERT,
                    array(to_json(inner), delimiter),
                    array(checked(inner), delimiter),
                )
        elif typtype == "d":
            inner = self.conversion(base_type)
            if not inner.may_be_text:
                return inner
        elif typtype != "c":
            return Conversion(ValueKind.TEXT)
        return Conversion(ValueKind.CONVERT, self._composites.converter(oid), may_be_text=True)

    def _built_in(self, schema: str, name: str) -> int | None:
        """Return the OID of a type in pg_catalog, for which the stream has an empty schema."""
        if schema or not name:
            return None
        rows = self._query(_BUILT_IN_BY_NAME, (name,))
        return rows[0][0] if rows else None
