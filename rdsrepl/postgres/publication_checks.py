"""What of a publication will not replicate, or will fail: facts in, findings out. Pure.

The rules are PostgreSQL's own (manual, sections 31.1 to 31.10 and 31.8, restrictions).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    warning = "warning"
    critical = "critical"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that will not replicate, or will fail.

    Attributes:
        level: critical: statements fail or nothing flows; warning: something is left out or costs much.
        check: the check's stable name.
        object: the table, or other object, it is about.
        message: one line.
        remedy: what to do, with the statement where there is one.
    """

    level: Level
    check: str
    object: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A published table, or one that is left out.

    Attributes:
        name: ``schema.table``, quoted as SQL needs it.
        relkind: ``pg_class.relkind``: r, p (partitioned), f (foreign), v, m.
        relpersistence: p, u (unlogged), t (temporary).
        replica_identity: d, n, f or i.
        identity_columns: the columns that identify a row: the primary key's or the chosen index's; empty without.
        row_filter, filter_columns: the row filter and the columns it reads; None without.
        column_list: the published columns; None is all of them.
        generated_columns: stored generated columns.
        sequences: sequences that feed its columns.
        large_object_columns: columns of type oid or lo.
        parent: the partitioned root, for a partition.
        references: tables with a foreign key to this one.
        approximate_bytes: its size.
    """

    name: str
    relkind: str = "r"
    relpersistence: str = "p"
    replica_identity: str = "d"
    identity_columns: tuple[str, ...] = ()
    row_filter: str | None = None
    filter_columns: tuple[str, ...] = ()
    column_list: tuple[str, ...] | None = None
    generated_columns: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    large_object_columns: tuple[str, ...] = ()
    parent: str | None = None
    references: tuple[str, ...] = ()
    approximate_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PublicationFacts:
    """A publication and everything the checks look at; gathered once.

    Attributes:
        pubname … pubviaroot: as in ``pg_publication``.
        publishes_generated: whether stored generated columns are published (18+).
        tables: what is published.
        left_out: what stands in its scope (its schemas; the database for all tables) and cannot be published.
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

    @property
    def needs_identity(self) -> bool:
        """Whether UPDATE or DELETE is published."""
        return self.pubupdate or self.pubdelete


def check(facts: PublicationFacts) -> list[Finding]:
    """Return all findings, the critical ones first."""
    found = [finding for rule in RULES for finding in rule(facts)]
    return sorted(found, key=lambda finding: finding.level is not Level.critical)


def empty(facts: PublicationFacts) -> Iterator[Finding]:
    """Find a publication without tables: it looks healthy, and nothing flows."""
    if not facts.tables:
        yield Finding(
            Level.critical, "empty", facts.pubname, "it has no tables: its slot stays green, nothing flows",
            f"rdsrepl publication add {facts.pubname} --table schema.table",
        )  # fmt: skip


def nothing_published(facts: PublicationFacts) -> Iterator[Finding]:
    """Find a publication that publishes no operation at all."""
    if not (facts.pubinsert or facts.pubupdate or facts.pubdelete or facts.pubtruncate):
        yield Finding(
            Level.critical, "publishes_nothing", facts.pubname, "it publishes no operation (publish = '')",
            f"ALTER PUBLICATION {facts.pubname} SET (publish = 'insert, update, delete, truncate')",
        )  # fmt: skip


def replica_identity(facts: PublicationFacts) -> Iterator[Finding]:
    """Without a replica identity, UPDATE and DELETE fail on the publisher itself."""
    if not facts.needs_identity:
        return
    verbs = " and ".join(verb for verb, on in (("UPDATE", facts.pubupdate), ("DELETE", facts.pubdelete)) if on)
    for table in facts.tables:
        if table.relkind == "p" and not facts.pubviaroot:
            continue  # its partitions are looked at
        if table.replica_identity != "f" and not table.identity_columns:
            why = {"d": "no primary key", "n": "REPLICA IDENTITY NOTHING", "i": "its identity index is gone"}
            yield Finding(
                Level.critical, "replica_identity", table.name,
                f"{verbs} on it will fail: {why.get(table.replica_identity, 'no replica identity')}",
                f"ALTER TABLE {table.name} ADD PRIMARY KEY (…), or REPLICA IDENTITY USING INDEX …, or FULL",
            )  # fmt: skip


def identity_covered(facts: PublicationFacts) -> Iterator[Finding]:
    """Column lists and row filters must cover, or stay within, the replica identity."""
    if not facts.needs_identity:
        return
    for table in facts.tables:
        identity = set(table.identity_columns)
        if table.column_list is not None:
            missing = identity - set(table.column_list)
            if table.replica_identity == "f" or missing:
                what = "REPLICA IDENTITY FULL" if table.replica_identity == "f" else ", ".join(sorted(missing))
                yield Finding(
                    Level.critical, "column_list", table.name,
                    f"UPDATE and DELETE on it will fail: the column list leaves out the replica identity ({what})",
                    "add these columns to the list, or publish inserts only",
                )  # fmt: skip
        outside = set(table.filter_columns) - identity
        if table.row_filter is not None and table.replica_identity != "f" and outside:
            yield Finding(
                Level.critical, "row_filter", table.name,
                f"UPDATE and DELETE on it will fail: the row filter reads {', '.join(sorted(outside))}, "
                "outside the replica identity",
                f"filter on identity columns, ALTER TABLE {table.name} REPLICA IDENTITY FULL, or publish inserts only",
            )  # fmt: skip


def full_identity(facts: PublicationFacts) -> Iterator[Finding]:
    """REPLICA IDENTITY FULL writes the whole old row to the WAL, and subscribers may have to scan."""
    for table in facts.tables:
        if facts.needs_identity and table.replica_identity == "f":
            yield Finding(
                Level.warning, "replica_identity_full", table.name,
                "each UPDATE and DELETE writes the whole old row to the WAL, and a subscriber without an index scans",
                f"a primary key is cheaper: ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT",
            )  # fmt: skip


def not_replicable(facts: PublicationFacts) -> Iterator[Finding]:
    """Unlogged, temporary and foreign tables, views and materialised views are silently left out."""
    kinds = {"f": "a foreign table", "v": "a view", "m": "a materialised view"}
    persistence = {"u": "unlogged", "t": "temporary"}
    for table in facts.left_out:
        what = kinds.get(table.relkind) or f"{persistence.get(table.relpersistence, 'a')} table"
        remedy = (
            f"ALTER TABLE {table.name} SET LOGGED" if table.relpersistence == "u" else "publish the tables behind it"
        )
        yield Finding(
            Level.warning,
            "not_replicable",
            table.name,
            f"it is {what} in the publication's scope: not replicated",
            remedy,
        )


def partitions(facts: PublicationFacts) -> Iterator[Finding]:
    """Without publish_via_partition_root, changes carry the partition's name."""
    for table in facts.tables:
        if table.relkind == "p" and not facts.pubviaroot:
            yield Finding(
                Level.warning, "partition_root", table.name,
                "its changes come under the names of its partitions; the subscriber needs the same partitions",
                f"ALTER PUBLICATION {facts.pubname} SET (publish_via_partition_root = true) to use the root's name",
            )  # fmt: skip


def sequences(facts: PublicationFacts) -> Iterator[Finding]:
    """Sequences do not move on the subscriber."""
    for table in facts.tables:
        if table.sequences:
            yield Finding(
                Level.warning, "sequences", table.name, f"sequences are not replicated: {', '.join(table.sequences)}",
                "before a switch-over, set them on the subscriber with setval()",
            )  # fmt: skip


def large_objects(facts: PublicationFacts) -> Iterator[Finding]:
    """Large objects do not replicate; a column only holds their number."""
    for table in facts.tables:
        if facts.large_objects and table.large_object_columns:
            yield Finding(
                Level.warning, "large_objects", table.name,
                f"{', '.join(table.large_object_columns)} may refer to large objects ({facts.large_objects} in this "
                "database), which are not replicated",
                "store the content in a bytea column",
            )  # fmt: skip


def truncate(facts: PublicationFacts) -> Iterator[Finding]:
    """Find foreign keys over which TRUNCATE … CASCADE leaves the publication."""
    if not facts.pubtruncate:
        return
    published = {table.name for table in facts.tables}
    for table in facts.tables:
        outside = sorted(set(table.references) - published)
        if outside:
            yield Finding(
                Level.warning, "truncate", table.name,
                f"TRUNCATE on it reaches tables outside the publication: {', '.join(outside)}",
                "publish those too, or leave truncate out of publish",
            )  # fmt: skip


def generated(facts: PublicationFacts) -> Iterator[Finding]:
    """Find generated columns: they are left out, unless 18 is told otherwise."""
    if facts.publishes_generated:
        return
    for table in facts.tables:
        left_out = [
            name for name in table.generated_columns if table.column_list is None or name not in table.column_list
        ]
        if left_out:
            yield Finding(
                Level.warning, "generated_columns", table.name,
                f"generated columns are not published: {', '.join(left_out)}",
                "compute them at the subscriber; PostgreSQL 18 can: publish_generated_columns = stored",
            )  # fmt: skip


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
