"""Find out how the target gets the changes of the source, and which tables to compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rdsrepl.errors import BadValue, NotFound, Refused
from rdsrepl.postgres import (
    connection,
    publications,
    relations,
    server_identity,
    slots,
    subscriptions,
    table_structures,
)
from rdsrepl.postgres.table_structures import TableName, TableStructure
from rdsrepl.text.commands import command, ddl
from rdsrepl.verify import structure
from rdsrepl.verify.links import Link, NoChanges, StandbyLink, SubscriptionLink
from rdsrepl.verify.structure import ComparedTable, StructureFinding

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.subscriptions import ReceivedTable


@dataclass(frozen=True, slots=True)
class Selection:
    """What to compare.

    Attributes:
        link: how the target gets the changes.
        back: how the source gets the changes of the target; None if it does not.
        tables: the tables that both have.
        unready: tables whose initial copy is not complete.
        findings: what is missing on one side.
    """

    link: Link
    back: Link | None
    tables: tuple[ComparedTable, ...]
    unready: frozenset[TableName]
    findings: tuple[StructureFinding, ...]


def require_two_databases(source: Connection, target: Connection) -> None:
    """Check that the connections lead to a primary and to another database.

    Raises:
        BadValue: they do not.
    """
    here, there = (
        (server_identity.system_identifier(conn), _started(conn), conn.info.dbname) for conn in (source, target)
    )
    if here == there:
        raise BadValue(f"--source and --to are the same database, {source.info.dbname}", hint="name the copy with --to")
    if connection.in_recovery(source):
        raise BadValue(
            "--source is a standby: a row is proven different only on the primary",
            hint="name the primary with --source and the standby with --read-from",
        )


def require_standby(source: Connection, reader: Connection) -> None:
    """Check that --read-from is a standby of the source, and the same database.

    Raises:
        BadValue: it is not.
    """
    same = server_identity.system_identifier(source) == server_identity.system_identifier(reader)
    if not same or not connection.in_recovery(reader) or source.info.dbname != reader.info.dbname:
        raise BadValue(
            "--read-from is not a standby of --source with the same database", hint="name a read replica of the source"
        )


def select(
    source: Connection, target: Connection, *, publication: str | None, only: Sequence[str], no_changes: bool
) -> Selection:
    """Return the tables to compare and how the target gets their changes.

    Args:
        source: the primary.
        target: the other database.
        publication: compare what it sends; None is what the target's subscriptions receive, without any all tables.
        only: compare only these tables, as SQL writes them.
        no_changes: neither side changes.

    Raises:
        NotFound: no such publication or table.
        Refused: how the target gets the changes is not known, or its subscription is disabled.
    """
    if publication is not None:
        publications.get(source, publication)
    wanted = {(found.schema, found.name) for found in (relations.find(source, text) for text in only)}
    is_standby = connection.in_recovery(target) and (
        server_identity.system_identifier(source) == server_identity.system_identifier(target)
    )
    received = [] if is_standby else _received_from(source, target, publication)
    link = _link(source, target, received, no_changes=no_changes, is_standby=is_standby)
    pubs = sorted({name for table in received for name in table.publications}) if received else []
    if publication is not None:
        pubs = [publication]
    sent = table_structures.published(source, pubs) if pubs else None
    if sent is not None and not (no_changes and publication is None):
        for name in sorted(wanted - sent.keys()):
            raise NotFound(
                f"no table {structure.sql_name(name)} in publication {', '.join(pubs)}: the target does not get it",
                hint=f"list its tables: {command('publication show {}', pubs[0])}",
            )
    names = None if sent is None else list(sent)
    if wanted:
        names = sorted(wanted)
    here, there = (
        [table for table in table_structures.ls(conn, names) if wanted or not table.has_snapshot_state]
        for conn in (source, target)
    )
    if names is None:
        here, there = structure.without_partitions(here, there)
    if sent is not None:
        here = [_as_sent(table, sent) for table in here if table.full_name in sent or wanted]
    tables, findings = structure.compare(here, there, only_common=names is not None)
    known = {(table.schema, table.name) for table in received}
    findings += _not_received(here, received, known)
    if not tables and not findings:
        raise NotFound(
            f"no table to compare: database {source.info.dbname} of the source has none that the target should have",
            hint="check which database --source and --to name, and the publication",
        )
    unready = frozenset((table.schema, table.name) for table in received if not table.is_ready)
    back = None if no_changes or is_standby else _back(source, target)
    return Selection(link, back, tuple(tables), unready, tuple(findings))


def _started(conn: Connection) -> object:
    row = conn.execute("SELECT pg_catalog.pg_postmaster_start_time()").fetchone()
    return row[0] if row is not None else None


def _received_from(source: Connection, target: Connection, publication: str | None) -> list[ReceivedTable]:
    """Return the tables of those subscriptions of the target whose slot is on the source, in its database."""
    own = {slot.slot_name for slot in slots.ls(source) if slot.database == source.info.dbname}
    return [
        table
        for table in subscriptions.received(target)
        if table.slot in own and (publication is None or publication in table.publications)
    ]


def _link(
    source: Connection, target: Connection, received: Sequence[ReceivedTable], *, no_changes: bool, is_standby: bool
) -> Link:
    if no_changes:
        return NoChanges()
    if is_standby:
        return StandbyLink(target)
    if not received:
        raise Refused(
            "no subscription of the target receives changes from the source, and the target is not its standby: "
            "a difference and a change on its way look the same",
            hint="if neither side changes, add --no-changes",
        )
    disabled = sorted({table.subscription for table in received if not table.enabled})
    if disabled:
        raise Refused(
            f"subscription {', '.join(disabled)} is disabled: the target does not get the changes of the source",
            hint=f"on the target: {ddl('ALTER SUBSCRIPTION {} ENABLE', disabled[0])}; "
            "if neither side changes, add --no-changes",
        )
    names, own = ({table.subscription for table in received}, {table.slot for table in received if table.slot})
    link = SubscriptionLink(source, target, sorted(names), sorted(own))
    if (name := link.from_elsewhere()) is not None:
        raise Refused(
            f"subscription {name} of the target receives from another server than --source, which has a slot with the "
            "same name",
            hint="name the server that the subscription connects to with --source; if neither side changes, add "
            "--no-changes",
        )
    return link


def _back(source: Connection, target: Connection) -> Link | None:
    """Return how the source gets the changes of the target: the subscriptions of replication in both directions."""
    received = [table for table in _received_from(target, source, None) if table.enabled]
    if not received:
        return None
    names, own = ({table.subscription for table in received}, {table.slot for table in received if table.slot})
    return SubscriptionLink(target, source, sorted(names), sorted(own))


def _as_sent(table: TableStructure, sent: dict[TableName, tuple[frozenset[str] | None, str | None]]) -> TableStructure:
    columns, row_filter = sent.get(table.full_name, (None, None))
    return replace(table, published_columns=columns, row_filter=row_filter)


def _not_received(
    tables: Iterable[TableStructure], received: Sequence[ReceivedTable], known: set[TableName]
) -> list[StructureFinding]:
    if not received:
        return []
    name = received[0].subscription
    return [
        StructureFinding(
            structure.sql_name(table.full_name),
            f"published, but not in the subscription: ALTER SUBSCRIPTION {name} REFRESH PUBLICATION on the target",
        )
        for table in tables
        if table.full_name not in known
    ]
