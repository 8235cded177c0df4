"""Check that a role may read what is compared, so that the error says which of the two servers refuses it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from rdsrepl.errors import Denied
from rdsrepl.text.commands import ddl
from rdsrepl.verify.structure import ComparedTable

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

_UNREADABLE: Final = """
SELECT current_user::text, n.nspname::text, c.relname::text,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE')
  FROM ROWS FROM (pg_catalog.unnest(%(schemas)s::text[]), pg_catalog.unnest(%(names)s::text[]),
                  pg_catalog.unnest(%(columns)s::text[])) AS w (schema, name, column_name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = w.column_name
 WHERE NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    OR NOT pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')
 LIMIT 1
"""


def require_readable(conn: Connection, server: str, tables: Iterable[ComparedTable]) -> None:
    """Require that the role of a connection may read the compared columns.

    Args:
        conn: the database.
        server: its name for people.
        tables: what is compared.

    Raises:
        Denied: it may not; the remedy is the statement that grants it.
    """
    wanted = [(table.schema, table.name, column.name) for table in tables for column in table.columns]
    schemas, names, columns = ([row[place] for row in wanted] for place in range(3))
    row = conn.execute(_UNREADABLE, {"schemas": schemas, "names": names, "columns": columns}).fetchone()
    if row is None:
        return
    role, schema, name, may_use_schema = row
    grants = [] if may_use_schema else [ddl("GRANT USAGE ON SCHEMA {} TO {}", schema, role)]
    grants.append(ddl("GRANT SELECT ON {}.{} TO {}", schema, name, role))
    raise Denied(
        f"{server}: role {role} may not read table {schema}.{name}",
        hint=f"there, as the owner: {'; '.join(grants)}",
        sqlstate="42501",
    )
