"""Look up the tables, schemas, columns and row filters that a user wants to publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rdsrepl import errors
from rdsrepl.postgres import versions
from rdsrepl.postgres.connection import server_version
from rdsrepl.postgres.relations import COLUMNS, Relation, find
from rdsrepl.postgres.row_filters import check_predicate
from rdsrepl.postgres.sql_names import parse_name, quote_if_needed
from rdsrepl.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from psycopg.sql import Composed

    from rdsrepl.postgres.connection import Connection


@dataclass(frozen=True, slots=True)
class RequestedObjects:
    """The objects to publish, by the names that the user typed, as SQL writes them.

    Attributes:
        tables: tables; ``search_path`` decides where the name has no schema.
        schemas: schemas of which all tables are published (15+).
        all_tables: all tables of the database, future ones included.
        columns: the columns to publish, by table (15+).
        filters: the row filter, by table (15+).
    """

    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    all_tables: bool = False
    columns: Mapping[str, tuple[str, ...]] | None = None
    filters: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TableToPublish:
    """A table to publish, found in the database and checked."""

    relation: Relation
    columns: tuple[str, ...] | None
    predicate: str | None
    filter_columns: tuple[str, ...] = ()


_SCHEMA_NAMES: Final = """
SELECT nspname::text FROM pg_catalog.pg_namespace WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
"""


def resolve(conn: Connection, scope: RequestedObjects, *, via_root: bool) -> tuple[list[TableToPublish], list[str]]:
    """Look up and check the requested objects; return the tables and the exact names of the schemas."""
    version = server_version(conn)
    columns, filters = dict(scope.columns or {}), dict(scope.filters or {})
    if (columns or filters or scope.schemas) and version < versions.PUBLICATION_FILTERS_SINCE:
        raise errors.Unsupported(
            f"column lists, row filters and schemas need PostgreSQL 15; this server is {version}",
            hint="publish whole tables with --table",
        )
    relations = list(dict.fromkeys(find(conn, text) for text in scope.tables))
    schemas = list(dict.fromkeys(find_schema(conn, text) for text in scope.schemas))
    list_of = {find(conn, text): names for text, names in columns.items()}
    filter_of = {find(conn, text): predicate for text, predicate in filters.items()}
    for kind, given, count in (("--columns", list_of, len(columns)), ("--where", filter_of, len(filters))):
        if len(given) < count:
            raise errors.BadValue(f"{kind} names a table twice", hint=f"use one {kind} for each table")
        for relation in given:
            if relation not in relations:
                raise errors.BadValue(
                    f"{kind} names {relation.quoted}, but no --table does", hint=f"add --table {relation.quoted}"
                )
            if relation.relkind == "p" and not via_root:
                raise errors.BadValue(
                    f"{kind} {relation.quoted} is a partitioned table, which is published as its partitions",
                    hint="create the publication with --via-root, or name the partitions",
                )
    if list_of and schemas:
        raise errors.BadValue("--columns and --schema exclude each other", hint="name the tables with --table")
    entries: list[TableToPublish] = []
    for relation in relations:
        _require_publishable(relation)
        names = _columns(conn, relation, list_of[relation]) if relation in list_of else None
        predicate = filter_of.get(relation)
        read = () if predicate is None else check_predicate(conn, relation, predicate)
        entries.append(TableToPublish(relation, names, predicate, read))
    return entries, schemas


def objects(entries: Sequence[TableToPublish], schemas: Sequence[str]) -> Composed:
    """Return the SQL after FOR or ADD: tables with their column lists and filters, then schemas."""
    from psycopg import sql

    parts: list[Composed] = []
    tables: list[Composed] = []
    for entry in entries:
        table = sql.SQL("{}").format(sql.Identifier(entry.relation.schema, entry.relation.name))
        if entry.columns is not None:
            table += sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, entry.columns)))
        if entry.predicate is not None:
            # SQL of the user, checked before; the plan shows it unchanged.
            table += sql.SQL(" WHERE ({})").format(sql.SQL(entry.predicate))
        tables.append(table)
    if tables:
        parts.append(sql.SQL("TABLE {}").format(sql.SQL(", ").join(tables)))
    if schemas:
        parts.append(sql.SQL("TABLES IN SCHEMA {}").format(sql.SQL(", ").join(map(sql.Identifier, schemas))))
    return sql.SQL(", ").join(parts)


def find_schema(conn: Connection, text: str) -> str:
    """Return the exact name of a schema that a user typed.

    Raises:
        BadValue: it is not the name of a schema.
        NotFound: the database has no such schema.
        Refused: it is a system schema.
    """
    parts = parse_name(text)
    if len(parts) != 1:
        raise errors.BadValue(f"{text!r} is not the name of a schema", hint='as SQL writes it: sales, "Odd Name"')
    names = [name for (name,) in conn.execute(_SCHEMA_NAMES)]
    if parts[0] in names:
        return parts[0]
    if parts[0] == "information_schema" or parts[0].startswith("pg_"):
        raise errors.Refused(
            f"schema {parts[0]} is a system schema and cannot be published", hint="name another schema"
        )
    raise errors.NotFound(
        f"no schema {text}",
        hint=did_you_mean(parts[0], names, otherwise="check the name and the database", quote=quote_if_needed),
    )


def _require_publishable(relation: Relation) -> None:
    kinds = {"v": "a view", "m": "a materialised view", "f": "a foreign table", "S": "a sequence", "c": "a type"}
    what = kinds.get(relation.relkind)
    if what is None and relation.relkind not in ("r", "p"):
        what = "not a table"
    if what is None:
        what = {"u": "an unlogged table", "t": "a temporary table"}.get(relation.relpersistence)
    if what is None and relation.schema in ("pg_catalog", "information_schema"):
        what = "a system table"
    if what is not None:
        raise errors.Refused(
            f"{relation.quoted} is {what} and cannot be published", hint="name ordinary tables with --table"
        )


def _columns(conn: Connection, relation: Relation, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the exact column names of a column list."""
    present: dict[str, str] = dict(conn.execute(COLUMNS, (relation.oid,)).fetchall())
    stored = server_version(conn) >= versions.GENERATED_COLUMNS_SINCE
    names: list[str] = []
    for text in wanted:
        (column,) = parse_name(text)
        if column not in present:
            columns = f"its columns: {', '.join(present)}"
            raise errors.NotFound(
                f"table {relation.quoted} has no column {text}",
                hint=did_you_mean(column, present, otherwise=columns, quote=quote_if_needed),
            )
        if column in names:
            raise errors.BadValue(f"--columns {relation.quoted} names {text} twice", hint="name it once")
        if present[column] and not (stored and present[column] == "s"):
            raise errors.Unsupported(
                f"{relation.quoted}.{text} is a generated column, which this server cannot publish",
                hint="remove it from the list; PostgreSQL 18 can publish stored generated columns",
            )
        names.append(column)
    return tuple(names)
