"""What the stream does not say about types and tables, asked of the server's catalogue when it is needed.

pgoutput names a column's type by OID only. For the common built-in types that is enough; for the others (arrays,
domains, composites, the type names that wal2json prints) one short query on an ordinary connection tells. The
catalogue is today's, the change may be older: a type dropped since is treated as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rdsrepl.tail import values
from rdsrepl.tail.values import BUILT_IN, PLAIN, Convert, Kind, Shape

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection

_TYPE = """
SELECT t.typtype::text, t.typelem, t.typbasetype, t.typrelid, e.typdelim::text,
       t.typlen = -1 AND t.typelem <> 0 AND t.typcategory = 'A'
  FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
 WHERE t.oid = %s
"""
_ATTRIBUTES = """
SELECT attname, atttypid FROM pg_catalog.pg_attribute
 WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
# Runs on the role's own search_path, as the schemas on it are left out of the names: nothing may be looked up there.
_TYPE_NAMES = """
SELECT pg_catalog.format_type(c.oid, c.typmod)
  FROM ROWS FROM (pg_catalog.unnest(%s::pg_catalog.oid[]), pg_catalog.unnest(%s::pg_catalog.int4[]))
       WITH ORDINALITY AS c (oid, typmod, number)
 ORDER BY c.number
"""
_PRIMARY_KEY = """
SELECT a.attname FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
 WHERE i.indrelid = %s AND i.indisprimary
"""
_TYPE_BY_NAME = "SELECT pg_catalog.to_regtype(%s)::oid"

_INT2VECTOR, _OIDVECTOR = 22, 30


class Catalog:
    """A lazily opened connection to the catalogue, with what it has told so far."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._conn: Connection | None = None
        self._shapes: dict[int, Shape] = {}
        self._by_name: dict[str, Shape] = {}

    def shape(self, oid: int) -> Shape:
        """Return how values of a type become JSON in the ``json`` dialect."""
        if oid in BUILT_IN:
            return Shape(BUILT_IN[oid])
        if oid in PLAIN:
            return Shape(Kind.TEXT)
        if oid not in self._shapes:
            self._shapes[oid] = self._look_up(oid)
        return self._shapes[oid]

    def shape_by_name(self, name: str) -> Shape:
        """Return the same for a type by its SQL name, such as ``integer[]`` or ``character varying(30)``."""
        if name not in self._by_name:
            rows = self._ask(_TYPE_BY_NAME, (name,))
            self._by_name[name] = self.shape(rows[0][0]) if rows[0][0] is not None else Shape(Kind.TEXT)
        return self._by_name[name]

    def type_names(self, oids: Sequence[int], typmods: Sequence[int]) -> list[str]:
        """Return the SQL names of types with their modifiers, as ``format_type`` prints them."""
        return [row[0] for row in self._ask(_TYPE_NAMES, (list(oids), list(typmods)), own_path=True)]

    def primary_key(self, relation_oid: int) -> frozenset[str]:
        """Return the names of a table's primary key columns; empty when it has none."""
        return frozenset(row[0] for row in self._ask(_PRIMARY_KEY, (relation_oid,)))

    def forget(self) -> None:
        """Drop the connection and what was learnt: the next question asks the server anew."""
        self.close()
        self._shapes.clear()
        self._by_name.clear()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _look_up(self, oid: int) -> Shape:
        if oid == _INT2VECTOR:
            return Shape(Kind.CONVERT, values.vector)
        if oid == _OIDVECTOR:
            return Shape(Kind.CONVERT, values.oidvector)
        rows = self._ask(_TYPE, (oid,))
        if not rows:
            return Shape(Kind.TEXT)
        typtype, element, base, relation, delimiter, is_array = rows[0]
        if is_array:
            return Shape(Kind.CONVERT, values.array(values.to_json(self.shape(element)), delimiter))
        if typtype == "d":
            return self.shape(base)
        if typtype == "c":
            attributes: list[tuple[str, Convert]] = [
                (name, values.to_json(self.shape(attribute))) for name, attribute in self._ask(_ATTRIBUTES, (relation,))
            ]
            return Shape(Kind.CONVERT, values.composite(attributes))
        return Shape(Kind.TEXT)

    def _ask(self, query: str, parameters: tuple[Any, ...], *, own_path: bool = False) -> list[tuple[Any, ...]]:
        import psycopg

        from rdsrepl.postgres import connection

        if self._conn is None:
            self._conn = connection.connect(self._target)
        try:
            with connection.own_path(self._conn) if own_path else nullcontext():
                return self._conn.execute(query, parameters).fetchall()
        except psycopg.Error as exc:
            self.close()
            raise connection.translate(exc) from exc
