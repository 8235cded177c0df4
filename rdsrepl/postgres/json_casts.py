"""Find columns whose JSON form runs code of the owner of their type.

``to_json`` and ``row_to_json`` call the cast of a type to json, if it has one (manual, section 9.16): that of hstore,
or one that the owner of a type has made. The stream calls no cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.table_structures import TableName

#: What such a column consists of: ``value``, ``array`` of values, or ``other``, such as a composite type.
Shape = Literal["value", "array", "other"]

_CAST: Final = """
WITH RECURSIVE part (name, root, oid) AS (
    SELECT a.attname::text, a.atttypid, a.atttypid
      FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT part.name, part.root, i.oid
      FROM part JOIN pg_catalog.pg_type t ON t.oid = part.oid
     CROSS JOIN LATERAL (SELECT t.typelem UNION SELECT t.typbasetype
                         UNION SELECT a.atttypid FROM pg_catalog.pg_attribute a
                                WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) i (oid)
     WHERE i.oid <> 0
)
SELECT DISTINCT part.name,
       CASE WHEN t.typtype IN ('b', 'e', 'r', 'm') AND t.typelem = 0 THEN 'value'
            WHEN e.typtype IN ('b', 'e', 'r', 'm') AND e.typelem = 0 THEN 'array' ELSE 'other' END
  FROM part JOIN pg_catalog.pg_cast c ON c.castsource = part.oid AND c.casttarget = 'pg_catalog.json'::regtype
                                     AND c.castmethod = 'f'
  JOIN pg_catalog.pg_type t ON t.oid = part.root LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
"""


def ls(conn: Connection, table: TableName) -> dict[str, Shape]:
    """Return the columns of a table in which a value has a type with a cast to json."""
    return dict(conn.execute(_CAST, table).fetchall())
