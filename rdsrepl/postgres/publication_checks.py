"""What of a publication will not replicate, or will fail: facts in, findings out. Pure.

The rules are PostgreSQL's own (manual, sections 31.1 to 31.10 and 31.8, restrictions).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from rdsrepl.text.commands import command
from rdsrepl.units import format_size


class Level(StrEnum):
    """How bad a finding is."""

    warning = "warning"
    critical = "critical"


@dataclass(frozen=True, slots=True)
class PublicationFinding:
    """Something that will not replicate, or will fail.

    Attributes:
        level: critical: statements fail or nothing flows; warning: something is left out or costs much.
        check: the check's stable name.
        object: the table, or other object, it is about.
        message: one line.
        remedy: what to do, with the statement where there is one.
        publication: the publication it was found in.
    """

    level: Level
    check: str
    object: str
    message: str
    remedy: str
    publication: str = ""


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A published table, or one that is left out.

    Attributes:
        name: ``schema.table``, quoted as SQL needs it.
        relkind: ``pg_class.relkind``: r, p (partitioned), f (foreign), v, m.
        relpersistence: p, u (unlogged), t (temporary).
        replica_identity: d, n, f or i.
        identity_columns: the columns that identify a row: the primary key's or the chosen index's; empty without one
            that serves (a deferrable key and an invalid index do not).
        deferrable_key: it has a primary key, and that is deferrable.
        row_filter, filter_columns: the row filter and the columns it reads; None without.
        column_list: the published columns; None is all of them.
        generated_columns: stored generated columns.
        virtual_columns: virtual generated columns (18+).
        sequences: sequences that feed its columns: serial, identity, or named in a default.
        large_object_columns: columns of type oid or lo.
        parent: the partitioned root, for a partition.
        partition_count: for a partitioned table, how many partitions hold its rows.
        references: tables with a foreign key to this one.
        approximate_bytes: its size on disk, indexes and TOAST left out.
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
    """A publication and everything the checks look at; gathered once.

    Attributes:
        pubname … pubviaroot: as in ``pg_publication``.
        publishes_generated: whether stored generated columns are published (18+).
        tables: what is published, under the name that its changes carry, foreign and unlogged partitions left out; and,
            without ``pubviaroot``, the partitioned tables whose partitions carry their own names.
        partitions: with ``pubviaroot``, the partitions behind ``tables``, with their root's column list and filter:
            it is their own replica identity that counts.
        left_out: what stands in its scope (its schemas; the database for all tables; partitions) and cannot be
            published.
        large_objects: how many large objects the database holds.
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
        """The statements that need a replica identity, in words."""
        return " and ".join(verb for verb, on in (("UPDATE", self.pubupdate), ("DELETE", self.pubdelete)) if on)

    @property
    def stores(self) -> tuple[TableFacts, ...]:
        """The tables that hold the rows: partitioned ones give way to their partitions."""
        return (*(table for table in self.tables if table.relkind != "p"), *self.partitions)


def check(facts: PublicationFacts) -> list[PublicationFinding]:
    """Return all findings, the critical ones first."""
    found = [finding for rule in RULES for finding in rule(facts)]
    ordered = sorted(found, key=lambda finding: finding.level is not Level.critical)
    return [replace(finding, publication=facts.pubname) for finding in ordered]


def failing(facts: PublicationFacts) -> list[PublicationFinding]:
    """Return only what makes statements on the publisher fail."""
    return [*replica_identity(facts), *identity_covered(facts)]


def empty(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find a publication without tables: it looks healthy, and nothing flows."""
    # A partitioned table without partitions, published under their names, gives nothing either.
    if not any(table.relkind != "p" or facts.pubviaroot for table in facts.tables):
        yield PublicationFinding(
            Level.critical, "empty", facts.pubname, "it has no tables: its slot stays green, nothing flows",
            "create the tables in its scope, or check that this is the right database" if facts.puballtables
            else command("publication add {} --table SCHEMA.TABLE", facts.pubname),
        )  # fmt: skip


def nothing_published(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find a publication that publishes no operation at all."""
    if not (facts.pubinsert or facts.pubupdate or facts.pubdelete or facts.pubtruncate):
        yield PublicationFinding(
            Level.critical, "publishes_nothing", facts.pubname, "it publishes no operation (publish = '')",
            f"ALTER PUBLICATION {_quoted(facts.pubname)} SET (publish = 'insert, update, delete, truncate')",
        )  # fmt: skip


def replica_identity(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Without a replica identity, UPDATE and DELETE fail on the publisher itself."""
    if not facts.needs_identity:
        return
    reasons = {"n": "it has REPLICA IDENTITY NOTHING", "i": "its replica identity index is gone or invalid"}
    for table in facts.stores:
        if table.replica_identity == "f" or table.identity_columns:
            continue
        key = "its primary key is deferrable, which does not serve" if table.deferrable_key else "it has no primary key"
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
    """Column lists must cover the replica identity, and row filters stay within it."""
    if not facts.needs_identity:
        return
    for table in facts.stores:
        identity = set(table.identity_columns)
        full = table.replica_identity == "f"
        if not identity and not full:
            continue  # nothing to cover: `replica_identity` says so
        missing = sorted(identity - set(table.column_list or ()))
        if table.column_list is not None and (full or missing):
            yield PublicationFinding(
                Level.critical, "column_list", table.name,
                f"{facts.verbs} on it will fail: the column list leaves out the replica identity "
                f"({'REPLICA IDENTITY FULL, which is every column' if full else ', '.join(missing)})",
                f"ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT, or leave the column list out" if full
                else "add these columns to the list, or publish inserts only",
            )  # fmt: skip
        outside = sorted(set(table.filter_columns) - identity)
        if table.row_filter is not None and not full and outside:
            yield PublicationFinding(
                Level.critical, "row_filter", table.name,
                f"{facts.verbs} on it will fail: the row filter reads {', '.join(outside)}, "
                "outside the replica identity",
                f"filter on identity columns, ALTER TABLE {table.name} REPLICA IDENTITY FULL, or publish inserts only",
            )  # fmt: skip


def full_identity(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """REPLICA IDENTITY FULL writes the whole old row to the WAL, and subscribers may have to scan."""
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
    """Unlogged, temporary and foreign tables, views and materialised views are silently left out."""
    remedies = {
        "f": ("a foreign table", "publish it where its rows are stored"),
        "v": ("a view", "publish the tables behind it, and create the view at the subscriber"),
        "m": ("a materialised view", "publish the tables behind it, and refresh it at the subscriber"),
    }
    for table in facts.left_out:
        what, remedy = remedies.get(table.relkind, ("a temporary table", "use an ordinary table"))
        if table.relkind == "r" and table.relpersistence == "u":
            what, remedy = "an unlogged table", f"ALTER TABLE {table.name} SET LOGGED"
        where = f" and a partition of {table.parent}" if table.parent else ""
        yield PublicationFinding(
            Level.warning, "not_replicable", table.name,
            f"it is {what}{where} in the publication's scope: not replicated", remedy,
        )  # fmt: skip


def partitions(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Without publish_via_partition_root, changes carry the partition's name."""
    for table in facts.tables:
        if table.relkind == "p" and not facts.pubviaroot:
            yield PublicationFinding(
                Level.warning, "partition_root", table.name,
                "its changes come under the names of its partitions; the subscriber needs the same partitions",
                f"ALTER PUBLICATION {_quoted(facts.pubname)} SET (publish_via_partition_root = true) "
                "to use the root's name",
            )  # fmt: skip


def sequences(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Sequences do not move on the subscriber."""
    for table in facts.tables:
        if table.sequences:
            yield PublicationFinding(
                Level.warning, "sequences", table.name, f"sequences are not replicated: {', '.join(table.sequences)}",
                "before a switch-over, set them at the subscriber with setval()",
            )  # fmt: skip


def large_objects(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Large objects do not replicate; a column only holds their number."""
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
    """Find foreign keys over which TRUNCATE … CASCADE leaves the publication."""
    if not facts.pubtruncate:
        return
    published = {table.name for table in facts.tables}
    for table in facts.tables:
        outside = sorted(set(table.references) - published)
        if outside:
            yield PublicationFinding(
                Level.warning, "truncate", table.name,
                f"TRUNCATE on it reaches tables outside the publication: {', '.join(outside)}",
                "publish those too, or leave truncate out of publish",
            )  # fmt: skip


def generated(facts: PublicationFacts) -> Iterator[PublicationFinding]:
    """Find generated columns: they are left out, unless 18 is told otherwise; virtual ones always."""
    for table in facts.tables:
        listed = set(table.column_list or ())
        stored = () if facts.publishes_generated else table.generated_columns
        left_out = [name for name in (*stored, *table.virtual_columns) if name not in listed]
        if left_out:
            yield PublicationFinding(
                Level.warning, "generated_columns", table.name,
                f"generated columns are not published: {', '.join(left_out)}",
                "generate them at the subscriber as well; "
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
