"""Find tables by the name that a user typed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.postgres.sql_names import not_a_table_name, parse_name
from rdsrepl.text.suggestions import closest

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class Relation:
    """A row of ``pg_class``.

    Attributes:
        quoted: the full name as SQL writes it.
        may_publish: whether this role has the rights of its owner.
    """

    oid: int
    schema: str
    name: str
    quoted: str
    relkind: str
    relpersistence: str
    may_publish: bool
    owner: str


_FIND: Final = """
SELECT c.oid, n.nspname::text, c.relname::text, format('%%I.%%I', n.nspname, c.relname), c.relkind::text,
       c.relpersistence::text, pg_has_role(c.relowner, 'usage'), pg_get_userbyid(c.relowner)::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE CASE WHEN %(schema)s::text IS NULL THEN c.oid = %(oid)s
            ELSE n.nspname = %(schema)s::text AND c.relname = %(table)s::text END
"""
_NAMES: Final = """
SELECT n.nspname::text, c.relname::text, format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2
"""
COLUMNS: Final = """
SELECT attname::text, attgenerated::text FROM pg_catalog.pg_attribute
 WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


def find(conn: Connection, text: str) -> Relation:
    """Return the table that a user named, as SQL writes it.

    Raises:
        BadValue: it is not the name of a table.
        NotFound: the database has no such table.
    """
    from psycopg import sql

    parts = parse_name(text)
    if len(parts) > 2:
        raise not_a_table_name(text)
    schema, table = (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    # to_regclass() only for a name without a schema: it fails for a schema that this role may not use.
    oid = find_oid(conn, sql.Identifier(table).as_string(None)) if schema is None else None
    row = conn.execute(_FIND, {"schema": schema, "table": table, "oid": oid}).fetchone()
    if row is not None:
        return Relation(*row)
    near = _near_table(conn, schema, table)
    raise errors.NotFound(
        f"no table {text}",
        hint=f"did you mean {near}?" if near else "check the name, its schema and the database",
    )


def quoted_tables(conn: Connection) -> list[str]:
    """Return the full names of all tables of users, as SQL writes them."""
    return [quoted for _, _, quoted in conn.execute(_NAMES).fetchall()]


def _near_table(conn: Connection, schema: str | None, table: str) -> str | None:
    """Return the table that was probably meant: in another schema, in another case, or with a similar name."""
    everything: list[tuple[str, str, str]] = conn.execute(_NAMES).fetchall()
    for same in (
        [quoted for _, name, quoted in everything if name == table],
        [quoted for _, name, quoted in everything if name.lower() == table.lower()],
    ):
        if same:
            return min(same, key=lambda quoted: -difflib.SequenceMatcher(None, quoted, f"{schema}.{table}").ratio())
    if schema is not None:
        names = {f"{namespace}.{name}": quoted for namespace, name, quoted in everything}
    else:
        names = {name: quoted for _, name, quoted in everything}
    near = closest(table if schema is None else f"{schema}.{table}", names)
    return None if near is None else names[near]


# The path of the session without this program. Both statements are safe with any path.
_OWN_PATH: Final = """
SELECT pg_catalog.set_config('search_path', s.reset_val, true) FROM pg_catalog.pg_settings s
 WHERE s.name OPERATOR(pg_catalog.=) 'search_path'
"""
_RELATION: Final = "SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid"


@contextmanager
def own_path(connection: Connection) -> Iterator[None]:
    """Give a transaction the ``search_path`` that the role, the database and the options of the user set.

    Inside it, name every function, operator, type and relation with its schema. The transaction is rolled back.
    """
    with connection.transaction(force_rollback=True):
        connection.execute(_OWN_PATH)
        yield


def find_oid(connection: Connection, name: str) -> int | None:
    """Return the OID of the relation NAME, as SQL writes it; None where it does not exist.

    Without a schema, the ``search_path`` of the role, the database and the user's options decides. Only the name is
    looked up in that path.

    Raises:
        psycopg.ProgrammingError: NAME is not a name in SQL.
    """
    with own_path(connection):
        row = connection.execute(_RELATION, (name,)).fetchone()
    assert row is not None
    oid: int | None = row[0]
    return oid
