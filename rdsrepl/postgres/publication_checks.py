"""Check what a publication does not replicate and what will fail: facts in, findings out. Pure.

The rules are those of PostgreSQL (manual, sections 31.1 to 31.10; restrictions: 31.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from rdsrepl.text.commands import command
from rdsrepl.units import format_size


class Level(StrEnum):
    """The severity of a finding."""

    warning = "warning"
    critical = "critical"


@dataclass(frozen=True, slots=True)
class PublicationFinding:
    """A problem of a publication.

    Attributes:
        level: critical: statements fail or nothing is replicated; warning: something is not replicated or is expensive.
        check: the stable name of the check.
        object: the table or other object.
        message: one line.
        remedy: what to do, with the statement if there is one.
        publication: the publication that has the problem.
    """

    level: Level
    check: str
    object: str
    message: str
    remedy: str
    publication: str = ""


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table that is published, or that cannot be published.

    Attributes:
        name: ``schema.table``, quoted as SQL needs it.
        relkind: ``pg_class.relkind``: r, p (partitioned), f (foreign), v, m.
        relpersistence: p, u (unlogged), t (temporary).
        replica_identity: d, n, f or i.
        identity_columns: the columns of the replica identity: of the primary key or the chosen index. Empty without
            one; a deferrable key and an invalid index do not count.
        deferrable_key: whether its primary key is deferrable.
        row_filter, filter_columns: the row filter and the columns that it reads; None and empty without one.
        column_list: the published columns; None is all columns.
        generated_columns: stored generated columns.
        virtual_columns: virtual generated columns (18+).
        sequences: the sequences of its columns: serial, identity, or named in a default.
        large_object_columns: columns of type oid or lo.
        parent: the root table of a partition.
        partition_count: how many partitions hold the rows of a partitioned table.
        references: the tables with a foreign key to this one.
        approximate_bytes: its size on disk without indexes and TOAST.
    """

    name: str
    relkind: str = "r"
    relpersistence: str = "p"
    replica_identity: str = "d"
    identity_columns: tuple[str, ...] = ()
    deferrable_key: bool = False
    row_filter: str | None = None
    filter_columns: tuple[str, ...] = ()
    column_list: tuple[str, ...] | None = None
    generated_columns: tuple[str, ...] = ()
    virtual_columns: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    large_object_columns: tuple[str, ...] = ()
    parent: str | None = None
    partition_count: int | None = None
    references: tuple[str, ...] = ()
    approximate_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PublicationFacts:
    """The facts about a publication that the checks need.

    Attributes:
        pubname … pubviaroot: as in ``pg_publication``.
        publishes_generated: whether stored generated columns are published (18+).
        tables: the published tables, under the names that their changes have, without foreign and unlogged partitions;
            and without ``pubviaroot`` also the partitioned tables whose partitions are published.
        partitions: with ``pubviaroot`` the partitions of ``tables``, with the column list and the filter of their root,
            but with their own replica identity.
        left_out: tables of its schemas (or of the database, for all tables) and partitions that cannot be published.
        large_objects: the number of large objects in the database.
    """

    pubname: str
    puballtables: bool
    pubinsert: bool
    pubupdate: bool
    pubdelete: bool
    pubtruncate: bool
    pubviaroot: bool
    publishes_generated: bool
    tables: tuple[TableFacts, ...]
    left_out: tuple[TableFacts, ...] = ()
    large_objects: int = 0
    partitions: tuple[TableFacts, ...] = ()

    @property
    def needs_identity(self) -> bool:
        """Whether UPDATE or DELETE is published."""
        return self.pubupdate or self.pubdelete

    @property
    def verbs(self) -> str:
        """The published statements that need a replica identity, in words."""
        return " and ".join(verb for verb, on in (("UPDATE", self.pubupdate), ("DELETE", self.pubdelete)) if on)

    @property
    def stores(self) -> tuple[TableFacts, ...]:
        """The tables that hold the rows: the partitions instead of the partitioned tables."""
        return (*(table for table in self.tables if table.relkind != "p"), *self.partitions)


def check(facts: PublicationFacts) -> list[PublicationFinding]:
    """Return all findings, the critical ones first."""
    findings = [finding for rule in RULES for finding in rule(facts)]
    ordered = sorted(findings, key=lambda finding: finding.level is not Level.critical)
    return [replace(finding, publication=facts.pubname) for finding in ordered]


def failing(facts: PublicationFacts) -> list[PublicationFinding]:
    """Return the findings that make statements on the publisher fail."""
    return [*replica_identity(facts), *identity_covered(facts)]


def empty(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find a publication without tables, which replicates nothing."""
    # Without pubviaroot, a partitioned table without partitions replicates nothing either.
    if not any(table.relkind != "p" or facts.pubviaroot for table in facts.tables):
        yield PublicationFinding(
            Level.critical, "empty", facts.pubname, "it has no tables: it replicates nothing, without an error",
            "create the tables, or check that this is the right database" if facts.puballtables
            else command("publication add {} --table SCHEMA.TABLE", facts.pubname),
        )  # fmt: skip


def nothing_published(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find a publication that publishes no operation."""
    if not (facts.pubinsert or facts.pubupdate or facts.pubdelete or facts.pubtruncate):
        yield PublicationFinding(
            Level.critical, "publishes_nothing", facts.pubname, "it publishes no operation (publish = '')",
            f"ALTER PUBLICATION {_quoted(facts.pubname)} SET (publish = 'insert, update, delete, truncate')",
        )  # fmt: skip


def replica_identity(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find tables without a replica identity, on which UPDATE and DELETE fail on the publisher."""
    if not facts.needs_identity:
        return
    reasons = {"n": "it has REPLICA IDENTITY NOTHING", "i": "its replica identity index is missing or invalid"}
    for table in facts.stores:
        if table.replica_identity == "f" or table.identity_columns:
            continue
        key = (
            "its primary key is deferrable, which is not a replica identity"
            if table.deferrable_key
            else "it has no primary key"
        )
        repairs = ["REPLICA IDENTITY USING INDEX …", "REPLICA IDENTITY FULL"]
        if not table.deferrable_key:
            default = "REPLICA IDENTITY DEFAULT (its primary key)"
            repairs.insert(0, "ADD PRIMARY KEY (…)" if table.replica_identity == "d" else default)
        yield PublicationFinding(
            Level.critical, "replica_identity", table.name,
            f"{facts.verbs} on it will fail: {reasons.get(table.replica_identity, key)}",
            f"ALTER TABLE {table.name} {', or '.join(repairs)}; or publish inserts only",
        )  # fmt: skip


def identity_covered(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find column lists that do not contain the replica identity, and row filters that read other columns."""
    if not facts.needs_identity:
        return
    for table in facts.stores:
        identity = set(table.identity_columns)
        full = table.replica_identity == "f"
        if not identity and not full:
            continue  # `replica_identity` reports that
        missing = sorted(identity - set(table.column_list or ()))
        if table.column_list is not None and (full or missing):
            yield PublicationFinding(
                Level.critical, "column_list", table.name,
                f"{facts.verbs} on it will fail: the column list does not contain the replica identity "
                f"({'REPLICA IDENTITY FULL, which is every column' if full else ', '.join(missing)})",
                f"ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT, or remove the column list" if full
                else "add these columns to the list, or publish inserts only",
            )  # fmt: skip
        outside = sorted(set(table.filter_columns) - identity)
        if table.row_filter is not None and not full and outside:
            yield PublicationFinding(
                Level.critical, "row_filter", table.name,
                f"{facts.verbs} on it will fail: the row filter reads {', '.join(outside)}, "
                "which are not in the replica identity",
                f"filter on its columns, ALTER TABLE {table.name} REPLICA IDENTITY FULL, or publish inserts only",
            )  # fmt: skip


def full_identity(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find REPLICA IDENTITY FULL, which writes whole old rows to the WAL and may need table scans on subscribers."""
    if not facts.needs_identity:
        return
    for table in facts.stores:
        if table.replica_identity == "f":
            size = format_size(table.approximate_bytes)
            yield PublicationFinding(
                Level.warning, "replica_identity_full", table.name,
                f"REPLICA IDENTITY FULL: each {facts.verbs.replace('and', 'or')} writes the whole old row to the WAL, "
                f"and a subscriber without a usable index scans the table ({size}) for each row",
                f"a primary key is cheaper: ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT",
            )  # fmt: skip


def not_replicable(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find unlogged, temporary and foreign tables, views and materialized views, which are not replicated."""
    remedies = {
        "f": ("a foreign table", "publish it on the server that stores its rows"),
        "v": ("a view", "publish its tables, and create the view on the subscriber"),
        "m": ("a materialized view", "publish its tables, and refresh it on the subscriber"),
    }
    for table in facts.left_out:
        what, remedy = remedies.get(table.relkind, ("a temporary table", "use an ordinary table"))
        if table.relkind == "r" and table.relpersistence == "u":
            what, remedy = "an unlogged table", f"ALTER TABLE {table.name} SET LOGGED"
        where = f" and a partition of {table.parent}" if table.parent else ""
        yield PublicationFinding(
            Level.warning, "not_replicable", table.name,
            f"it is {what}{where}, which is not replicated", remedy,
        )  # fmt: skip


def partitions(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find partitioned tables whose changes have the names of their partitions."""
    for table in facts.tables:
        if table.relkind == "p" and not facts.pubviaroot:
            yield PublicationFinding(
                Level.warning, "partition_root", table.name,
                "its changes have the names of its partitions; the subscriber needs the same partitions",
                f"ALTER PUBLICATION {_quoted(facts.pubname)} SET (publish_via_partition_root = true) "
                "to use the name of the root",
            )  # fmt: skip


def sequences(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find sequences, which are not replicated."""
    for table in facts.tables:
        if table.sequences:
            yield PublicationFinding(
                Level.warning, "sequences", table.name, f"sequences are not replicated: {', '.join(table.sequences)}",
                "before a switchover, set them on the subscriber with setval()",
            )  # fmt: skip


def large_objects(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find large objects, which are not replicated; a column only contains their OID."""
    if not facts.large_objects:
        return
    pointing = [table for table in facts.tables if table.large_object_columns]
    remedy = "store the content in a bytea column"
    for table in pointing:
        yield PublicationFinding(
            Level.warning, "large_objects", table.name,
            f"{', '.join(table.large_object_columns)} may refer to large objects ({facts.large_objects} in this "
            "database), which are not replicated", remedy,
        )  # fmt: skip
    if facts.puballtables and not pointing:
        yield PublicationFinding(
            Level.warning, "large_objects", facts.pubname,
            f"large objects are in use in this database ({facts.large_objects}) and are not replicated", remedy,
        )  # fmt: skip


def truncate(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find foreign keys through which TRUNCATE … CASCADE reaches tables that are not published."""
    if not facts.pubtruncate:
        return
    published = {table.name for table in facts.tables}
    for table in facts.tables:
        outside = sorted(set(table.references) - published)
        if outside:
            yield PublicationFinding(
                Level.warning, "truncate", table.name,
                f"TRUNCATE on it reaches tables outside the publication: {', '.join(outside)}",
                "publish those, too, or remove truncate from publish",
            )  # fmt: skip


def generated(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find generated columns that are not published: virtual ones never are, stored ones only on 18 on request."""
    for table in facts.tables:
        listed = set(table.column_list or ())
        stored = () if facts.publishes_generated else table.generated_columns
        left_out = [name for name in (*stored, *table.virtual_columns) if name not in listed]
        if left_out:
            yield PublicationFinding(
                Level.warning, "generated_columns", table.name,
                f"generated columns are not published: {', '.join(left_out)}",
                "generate them on the subscriber as well; "
                "PostgreSQL 18 can publish stored ones: publish_generated_columns = stored",
            )  # fmt: skip


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


RULES = (
    empty,
    nothing_published,
    replica_identity,
    identity_covered,
    full_identity,
    not_replicable,
    partitions,
    sequences,
    large_objects,
    truncate,
    generated,
)
