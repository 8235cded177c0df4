"""``rdsrepl publication``: manage the publications of a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.command_classes import ListCommand, ReadCommand, WriteCommand
from rdsrepl.cli.completion import complete_publication, complete_table
from rdsrepl.cli.confirm import plan_and_apply
from rdsrepl.cli.context import global_options, list_options
from rdsrepl.cli.hints import with_selectors
from rdsrepl.cli.lists import Rows, print_database_list
from rdsrepl.cli.options import flag_option
from rdsrepl.cli.targets import database_target
from rdsrepl.errors import BadValue, ExitCode
from rdsrepl.render import Column, Listing, emit, facts, listing, sections, stacked, styled

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.publication_checks import PublicationFinding
    from rdsrepl.postgres.publication_objects import RequestedObjects
    from rdsrepl.postgres.publications import PublishedTable

app = typer.Typer(no_args_is_help=True, help="Publications: choose the changes that a pgoutput slot sends.")


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The publication.", autocompletion=complete_publication, show_default=False),
]
Tables = Annotated[
    list[str] | None,
    typer.Option(
        "--table", metavar="TABLE", help="Name a table, as in SQL; may be repeated.", autocompletion=complete_table
    ),
]
Schemas = Annotated[
    list[str] | None,
    typer.Option("--schema", metavar="SCHEMA", help="Include all tables of a schema, future ones as well (15+)."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="TABLE=A,B", help="Publish only these columns of a table (15+)."),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where", metavar="'TABLE: PREDICATE'", help="Publish only the rows for which this SQL is true (15+)."
    ),
]


@app.command(cls=WriteCommand)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new publication.", show_default=False)],
    table: Tables = None,
    schema: Schemas = None,
    all_tables: Annotated[bool, flag_option("--all-tables", help="Publish every table, future ones as well.")] = False,
    columns: Columns = None,
    where_: Where = None,
    publish: Annotated[
        str, typer.Option("--publish", metavar="OPERATIONS", help="Publish these operations.")
    ] = "insert,update,delete,truncate",
    via_root: Annotated[bool, flag_option("--via-root", help="Publish partitions under their root's name.")] = False,
) -> None:
    """Create a publication.

    Create it before the slot: changes from before the publication cannot be decoded with it.

    Example: rdsrepl publication create shop --table sales.orders --where 'sales.orders: amount > 0'
    """
    from rdsrepl.postgres import publication_plans

    scope = _scope(table, schema, columns, where_, all_tables=all_tables)
    operations = [word.strip().lower() for word in publish.split(",") if word.strip()]
    plan_and_apply(ctx, lambda conn: publication_plans.create(conn, name, scope, publish=operations, via_root=via_root))


@app.command("list", cls=ListCommand)
def list_(ctx: typer.Context) -> None:
    """List the database's publications.

    Example: rdsrepl publication list
    """
    from rdsrepl.postgres import publications

    columns = (
        Column("PUBLICATION", lambda row: row.pubname, "pubname", kind="name"),
        Column("OWNER", lambda row: row.owner, "owner", priority=2, kind="name"),
        Column(
            "TABLES",
            lambda row: f"all ({row.table_count})" if row.puballtables else row.table_count,
            "table_count",
            kind="number",
        ),
        Column("SCHEMAS", lambda row: row.schemas, "schemas", priority=3, kind="prose"),
        Column("PUBLISH", lambda row: row.publish, "publish", kind="prose"),
        Column("VIA ROOT", lambda row: row.pubviaroot, "pubviaroot", priority=4),
    )
    shown = Listing(publications.Publication, columns, "no publications in this database")
    print_database_list(ctx, shown, publications.ls)


@app.command(cls=ReadCommand)
def show(ctx: typer.Context, name: Name) -> None:
    """Show a publication and its tables: replica identity, columns, row filter.

    Example: rdsrepl publication show shop
    """
    from rdsrepl.postgres import connection, publications

    with connection.open(database_target(ctx)) as conn:
        published = publications.published(conn, name)

    def table() -> object:
        head = published.publication
        pairs = [
            ("publication", head.pubname),
            ("owner", head.owner),
            ("all tables", head.puballtables),
            ("schemas", head.schemas),
            ("publish", head.publish),
            ("via root", head.pubviaroot),
            *([("generated columns", head.pubgencols)] if head.pubgencols else []),
        ]
        columns = (
            Column("TABLE", lambda row: f"{row.schemaname}.{row.tablename}", kind="name"),
            Column("REPLICA IDENTITY", _identity, kind="prose"),
            Column("COLUMNS", lambda row: "all" if row.attnames is None else row.attnames, priority=2, kind="prose"),
            Column("ROW FILTER", lambda row: row.rowfilter, priority=2, kind="prose"),
            Column("PARTITION OF", lambda row: row.partition_of, priority=3, kind="name"),
            Column("PARTITIONS", lambda row: row.partition_count, priority=4, kind="number"),
        )
        return stacked(facts(pairs), "", listing(published.tables, columns, empty="no tables are published"))

    emit(published, global_options(ctx).output, table)


@app.command(cls=WriteCommand)
def add(
    ctx: typer.Context,
    name: Name,
    table: Tables = None,
    schema: Schemas = None,
    columns: Columns = None,
    where_: Where = None,
) -> None:
    """Add tables or schemas to a publication; the others stay as they are.

    Example: rdsrepl publication add shop --table sales.items
    """
    from rdsrepl.postgres import publication_plans

    scope = _scope(table, schema, columns, where_)
    plan_and_apply(ctx, lambda conn: publication_plans.add(conn, name, scope))


@app.command(cls=WriteCommand)
def remove(ctx: typer.Context, name: Name, table: Tables = None, schema: Schemas = None) -> None:
    """Remove tables or schemas from a publication.

    Example: rdsrepl publication remove shop --table sales.items
    """
    from rdsrepl.postgres import publication_plans

    scope = _scope(table, schema, None, None)
    plan_and_apply(ctx, lambda conn: publication_plans.remove(conn, name, scope))


@app.command(cls=WriteCommand)
def drop(ctx: typer.Context, name: Name) -> None:
    """Drop a publication; the plan names the slots that may stream it.

    Example: rdsrepl publication drop shop --dry-run
    """
    from rdsrepl.postgres import publication_plans

    plan_and_apply(ctx, lambda conn: publication_plans.drop(conn, name))


@app.command(cls=ListCommand)
def check(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="The publication; default: all publications.", autocompletion=complete_publication,
            show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Check what in a publication does not replicate, or fails.

    The exit code is 0 without problems, 8 with warnings, 9 with critical ones.

    Example: rdsrepl publication check shop
    """
    from rdsrepl.postgres import publication_checks, publications
    from rdsrepl.postgres.publication_checks import Level, PublicationFinding

    columns = _FINDING_COLUMNS[bool(name) :]

    def read(conn: Connection) -> Rows:
        names = [name] if name else [publication.pubname for publication in publications.ls(conn)]
        found = [finding for each in names for finding in publication_checks.check(publications.facts(conn, each))]
        found = [replace(finding, remedy=with_selectors(ctx, finding.remedy)) for finding in found]
        table = None if list_options(ctx).no_headers else lambda rows: _findings(rows, columns)
        return Rows(found, empty=_no_findings(names), table=table)

    findings = print_database_list(ctx, Listing(PublicationFinding, columns, "", name="object"), read).rows
    if any(finding.level is Level.critical for finding in findings):
        raise typer.Exit(ExitCode.CRITICAL)
    if findings:
        raise typer.Exit(ExitCode.WARNING)


_FINDING_COLUMNS: Final = (
    Column("PUBLICATION", lambda row: row.publication, "publication", kind="name"),
    Column("LEVEL", lambda row: row.level.value, "level"),
    Column("CHECK", lambda row: row.check, "check", priority=3),
    Column("OBJECT", lambda row: row.object, "object", kind="name"),
    Column("MESSAGE", lambda row: row.message, "message", kind="prose"),
    Column("REMEDY", lambda row: row.remedy, "remedy", priority=2, kind="prose"),
)


def _findings(rows: Sequence[PublicationFinding], columns: Sequence[Column]) -> object:
    return sections(
        rows,
        columns[:-3],
        lambda row: [f"{row.object}: {row.message}", styled(f"→ {row.remedy}", "dim")],
        wide=listing(rows, columns, empty=""),
        kind=lambda row: row.check,
    )


def _no_findings(names: Sequence[str]) -> str:
    return f"publication {', '.join(names)}: no problems found" if names else "no publications in this database"


def _identity(row: PublishedTable) -> str:
    return f"{row.replica_identity} ({', '.join(row.identity_columns) or 'none'})"


def _scope(
    table: Sequence[str] | None,
    schema: Sequence[str] | None,
    columns: Sequence[str] | None,
    where_: Sequence[str] | None,
    *,
    all_tables: bool = False,
) -> RequestedObjects:
    from rdsrepl.postgres.publication_objects import RequestedObjects
    from rdsrepl.postgres.sql_names import parse_columns, parse_filter

    lists = [parse_columns(text) for text in columns or ()]
    filters = [parse_filter(text) for text in where_ or ()]
    for option, names in (("--columns", [name for name, _ in lists]), ("--where", [name for name, _ in filters])):
        if len(set(names)) < len(names):
            raise BadValue(f"{option} names a table twice", hint=f"give one {option} for each table")
    if not (table or schema or all_tables):
        raise BadValue(
            "no table or schema is given", hint="add --table TABLE, --schema SCHEMA or, for create, --all-tables"
        )
    return RequestedObjects(tuple(table or ()), tuple(schema or ()), all_tables, dict(lists), dict(filters))
