"""Tables and schemas to publish: from the names that a user typed to the objects of the database."""

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
    """What to publish, as the user named it: names as SQL writes them, with quotes where they are needed.

    Attributes:
        tables: tables; without a schema they are looked up in ``search_path``.
        schemas: whole schemas (15+).
        all_tables: everything, now and later.
        columns: by table, the columns to publish (15+), as SQL writes them.
        filters: by table, a predicate of SQL (15+).
    """

    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    all_tables: bool = False
    columns: Mapping[str, tuple[str, ...]] | None = None
    filters: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TableToPublish:
    """A table to publish, looked up and checked."""

    relation: Relation
    columns: tuple[str, ...] | None
    predicate: str | None
    filter_columns: tuple[str, ...] = ()


_SCHEMA_NAMES: Final = """
SELECT nspname::text FROM pg_catalog.pg_namespace WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'
"""


def resolve(conn: Connection, scope: RequestedObjects, *, via_root: bool) -> tuple[list[TableToPublish], list[str]]:
    """Look up and check all that a scope names: the tables, and the schemas' exact names."""
    version = server_version(conn)
    columns, filters = dict(scope.columns or {}), dict(scope.filters or {})
    if (columns or filters or scope.schemas) and version < versions.PUBLICATION_FILTERS_SINCE:
        raise errors.Unsupported(
            f"column lists, row filters and schemas need PostgreSQL 15, and this is {version}",
            hint="name whole tables with --table",
        )
    relations = list(dict.fromkeys(find(conn, text) for text in scope.tables))
    schemas = list(dict.fromkeys(find_schema(conn, text) for text in scope.schemas))
    list_of = {find(conn, text): names for text, names in columns.items()}
    filter_of = {find(conn, text): predicate for text, predicate in filters.items()}
    for kind, given, count in (("--columns", list_of, len(columns)), ("--where", filter_of, len(filters))):
        if len(given) < count:
            raise errors.BadValue(f"{kind} names a table twice", hint=f"one {kind} for each table")
        for relation in given:
            if relation not in relations:
                raise errors.BadValue(
                    f"{kind} names {relation.quoted}, which is no --table", hint=f"add --table {relation.quoted}"
                )
            if relation.relkind == "p" and not via_root:
                raise errors.BadValue(
                    f"{kind} {relation.quoted}: a partitioned table's partitions are published one by one here",
                    hint="publish it under its own name with create --via-root, or name the partitions",
                )
    if list_of and schemas:
        raise errors.BadValue(
            "--columns and --schema exclude each other in one publication", hint="name the tables with --table"
        )
    entries: list[TableToPublish] = []
    for relation in relations:
        _require_publishable(relation)
        names = _columns(conn, relation, list_of[relation]) if relation in list_of else None
        predicate = filter_of.get(relation)
        read = () if predicate is None else check_predicate(conn, relation, predicate)
        entries.append(TableToPublish(relation, names, predicate, read))
    return entries, schemas


def objects(entries: Sequence[TableToPublish], schemas: Sequence[str]) -> Composed:
    """Return what follows FOR or ADD: tables with their columns and filters, then schemas."""
    from psycopg import sql

    parts: list[Composed] = []
    tables: list[Composed] = []
    for entry in entries:
        table = sql.SQL("{}").format(sql.Identifier(entry.relation.schema, entry.relation.name))
        if entry.columns is not None:
            table += sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, entry.columns)))
        if entry.predicate is not None:
            # The user's own SQL, checked: shown in the plan as it stands.
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
        raise errors.BadValue(f"{text!r} is not a schema's name", hint='as SQL writes it: sales, "Odd Name"')
    names = [name for (name,) in conn.execute(_SCHEMA_NAMES)]
    if parts[0] in names:
        return parts[0]
    if parts[0] == "information_schema" or parts[0].startswith("pg_"):
        raise errors.Refused(f"schema {parts[0]} is the system's and cannot be published", hint="name another schema")
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
    """Return the exact names of a column list."""
    present: dict[str, str] = dict(conn.execute(COLUMNS, (relation.oid,)).fetchall())
    stored = server_version(conn) >= versions.GENERATED_COLUMNS_SINCE
    found: list[str] = []
    for text in wanted:
        (column,) = parse_name(text)
        if column not in present:
            columns = f"its columns: {', '.join(present)}"
            raise errors.NotFound(
                f"table {relation.quoted} has no column {text}",
                hint=did_you_mean(column, present, otherwise=columns, quote=quote_if_needed),
            )
        if column in found:
            raise errors.BadValue(f"--columns {relation.quoted} names {text} twice", hint="name it once")
        if present[column] and not (stored and present[column] == "s"):
            raise errors.Unsupported(
                f"{relation.quoted}.{text} is a generated column, which a column list cannot name here",
                hint="leave it out; PostgreSQL 18 can publish stored ones",
            )
        found.append(column)
    return tuple(found)
