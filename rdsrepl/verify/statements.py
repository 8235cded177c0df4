"""The statements that read one side of a comparison.

Where both servers are 14 or later, a row's fingerprint is ``hash_record_extended`` of its columns, the key among them:
0.27 s a million rows of 7 columns, ``md5`` of the row as text 1.8 s. The hash of a record is a weighted sum of the
hashes of its columns. A sum of such hashes would not change if two rows exchange a value, so a range's fingerprint is
their ``bit_xor``. Where rows can be equal, ``bit_xor`` would not change if two equal rows are missing. A table without
a key, and every table before 14, has the sum of ``hashtextextended`` of the rows as text.

A hash function must give the same value in every version and for equal values; ``_HASHED`` names the types for which
that was tried on 15, 16 and 18. All other values are hashed as text. Enums are among them: their hash is that of an
OID, which depends on the order in which objects were created; so are intervals, of which a month equals 30 days.

The owner of a type can define its cast to text, which then runs with the rights of the role that reads the table. The
text of such a type is what its output function returns: ``concat`` uses no cast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composable, Composed

    from rdsrepl.verify.structure import ComparedColumn, ComparedTable

#: The values of a key as text, in the order of the key's columns.
Key = tuple[str, ...]

_HASHED: Final = frozenset(
    (
        "bool",
        "int2",
        "int4",
        "int8",
        "float4",
        "float8",
        "numeric",
        "text",
        "varchar",
        "bpchar",
        "bytea",
        "date",
        "time",
        "timetz",
        "timestamp",
        "timestamptz",
        "uuid",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "jsonb",
    )
)
# Types with an order that an index has and whose text can be read back.
_ORDERED: Final = frozenset(
    (
        "bool",
        "int2",
        "int4",
        "int8",
        "oid",
        "numeric",
        "text",
        "varchar",
        "bpchar",
        "bytea",
        "date",
        "time",
        "timestamp",
        "timestamptz",
        "uuid",
        "inet",
    )
)
# The text of money depends on lc_monetary of each server.
_CASTS: Final = {"money": "numeric"}


@dataclass(frozen=True, slots=True)
class Range:
    """The rows whose key is above ``low`` and at or below ``high``; None is without that bound.

    A chain of ranges, each beginning where the one before ends, covers every key, also on a server that sorts the
    bounds in another order: a key is in the range of the first bound that it is not above.
    """

    low: Key | None
    high: Key | None


@dataclass(frozen=True, slots=True)
class Side:
    """How to read one side of a table.

    Attributes:
        name: the name of the table.
        relation: what stands after FROM, with the alias ``t``.
        key: the expressions of the key's columns.
        key_types: the type of each.
        is_indexed: the index of the key finds rows by these expressions.
        is_ordered: it also has them in an order, the same on both sides.
        fingerprint: the expression of a row's fingerprint, an int8.
        aggregate: the function that combines the fingerprints of a range.
        row_filter: which rows are compared; None is all.
    """

    name: Composable
    relation: Composed
    key: tuple[Composed, ...]
    key_types: tuple[Composable, ...]
    is_indexed: bool
    is_ordered: bool
    fingerprint: Composed
    aggregate: SQL
    row_filter: Composed | None


def side(table: ComparedTable, *, is_source: bool, hashes_records: bool, exact_text: bool) -> Side:
    """Return how to read one side of a table.

    Args:
        table: the table.
        is_source: the row filter of a publication applies to the source.
        hashes_records: both servers are 14 or later, and the table has a key.
        exact_text: compare all values as text, so that numeric 1.0 and 1.00 differ.
    """
    from psycopg import sql

    kind = table.source_kind if is_source else table.target_kind
    keyword = sql.SQL("" if kind == "p" else "ONLY ")
    is_filtered = is_source and table.row_filter is not None
    is_indexed = all(_is_indexed(column, exact_text=exact_text) for column in table.key)
    return Side(
        sql.Identifier(table.schema, table.name),
        sql.SQL("{}{} AS t").format(keyword, sql.Identifier(table.schema, table.name)),
        tuple(_key_expression(column, exact_text=exact_text) for column in table.key),
        tuple(_key_type(column, exact_text=exact_text) for column in table.key),
        is_indexed,
        is_indexed and all(column.sorts_equally for column in table.key),
        fingerprint(table.columns, hashes_records=hashes_records, exact_text=exact_text),
        sql.SQL("bit_xor" if hashes_records else "sum"),
        sql.Composed([sql.SQL("("), sql.SQL(table.row_filter or ""), sql.SQL(")")]) if is_filtered else None,
    )


def fingerprint(columns: Sequence[ComparedColumn], *, hashes_records: bool, exact_text: bool) -> Composed:
    """Return the expression of a row's fingerprint over columns of ``t``."""
    from psycopg import sql

    values = sql.SQL(", ").join(value(column, exact_text=exact_text) for column in columns)
    form = "pg_catalog.hash_record_extended(ROW({}), 0)" if hashes_records else (
        "pg_catalog.hashtextextended(ROW({})::text, 0)"
    )  # fmt: skip
    return sql.SQL(form).format(values)


def value(column: ComparedColumn, *, exact_text: bool) -> Composed:
    """Return the expression of a column's value as it is hashed."""
    from psycopg import sql

    name = sql.Identifier("t", column.name)
    if column.builtin in _HASHED and not exact_text:
        return sql.SQL("{}::{}").format(name, sql.Identifier("pg_catalog", str(column.builtin)))
    return text(column)


def text(column: ComparedColumn) -> Composed:
    """Return the expression of a column's value as text, or NULL."""
    from psycopg import sql

    name = sql.Identifier("t", column.name)
    if column.builtin is None:
        # NULL is not a row of NULLs.
        is_known = sql.SQL("CASE WHEN pg_catalog.num_nulls({}) = 0 THEN pg_catalog.concat({}) END")
        return is_known.format(name, name)
    if column.builtin in _CASTS:
        return sql.SQL("{}::{}::text").format(name, sql.Identifier("pg_catalog", _CASTS[column.builtin]))
    return sql.SQL("{}::text").format(name)


def _is_indexed(column: ComparedColumn, *, exact_text: bool) -> bool:
    if exact_text and column.builtin == "numeric":
        return False
    return column.builtin in _ORDERED and column.is_deterministic


def _key_expression(column: ComparedColumn, *, exact_text: bool) -> Composed:
    from psycopg import sql

    name = sql.Identifier("t", column.name)
    if _is_indexed(column, exact_text=exact_text):
        return sql.Composed([name])
    # An operator of another schema is not found with an empty search_path.
    return sql.SQL('(pg_catalog.concat({}) COLLATE "C")').format(name)


def _key_type(column: ComparedColumn, *, exact_text: bool) -> Composable:
    from psycopg import sql

    return sql.Identifier("pg_catalog", str(column.builtin) if _is_indexed(column, exact_text=exact_text) else "text")


def buckets(table: Side, count: int) -> Composed:
    """Return the query for the number of rows and the fingerprint of each bucket of a table, by hashes of the key."""
    from psycopg import sql

    return sql.SQL(
        "SELECT {bucket}, count(*), coalesce({aggregate}({hash}), 0) FROM {relation} WHERE {where} GROUP BY 1"
    ).format(
        bucket=_bucket(table, count),
        aggregate=table.aggregate,
        hash=table.fingerprint,
        relation=table.relation,
        where=_inside(table, Range(None, None)),
    )


def rows_of_buckets(table: Side, count: int, wanted: Sequence[int]) -> Composed:
    """Return the query for the key, as text, and the fingerprint of each row of some buckets."""
    from psycopg import sql

    return sql.SQL("SELECT {keys}, {hash} FROM {relation} WHERE {where} AND {bucket} = ANY ({wanted})").format(
        keys=_texts(table),
        hash=table.fingerprint,
        relation=table.relation,
        where=_inside(table, Range(None, None)),
        bucket=_bucket(table, count),
        wanted=sql.Literal(list(wanted)),
    )


def _bucket(table: Side, count: int) -> Composed:
    """Return the expression of a row's bucket, from 0 to COUNT - 1; COUNT is a power of two."""
    from psycopg import sql

    return sql.SQL("(pg_catalog.hashtextextended(ROW({})::text, 0) & {}::bigint)").format(
        _texts(table), sql.Literal(count - 1)
    )


def bounds(table: Side, wanted: Range, step: int, count: int) -> Composed:
    """Return the query for up to COUNT keys, as text, STEP rows apart, above the low bound of a range."""
    from psycopg import sql

    names = [sql.Identifier(f"k{number}") for number in range(len(table.key))]
    return sql.SQL(
        "SELECT {texts} FROM (SELECT *, row_number() OVER () AS place FROM"
        " (SELECT {keys} FROM {relation} WHERE {where} ORDER BY {order} LIMIT {limit}) ordered) numbered"
        " WHERE place % {step} = 0 ORDER BY place"
    ).format(
        texts=sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in names),
        keys=_aliased(table.key, names),
        relation=table.relation,
        where=_inside(table, wanted, is_filtered=False),
        order=sql.SQL(", ").join(table.key),
        limit=sql.Literal(step * count),
        step=sql.Literal(step),
    )


def totals(table: Side, ranges: Sequence[Range]) -> Composed:
    """Return the query for the place, the number of rows and the fingerprint of each range."""
    from psycopg import sql

    return sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {place}, count(*), coalesce({aggregate}({hash}), 0) FROM {relation} WHERE {where}").format(
            aggregate=table.aggregate,
            place=sql.Literal(place),
            hash=table.fingerprint,
            relation=table.relation,
            where=_inside(table, one),
        )
        for place, one in enumerate(ranges)
    )


def rows(table: Side, wanted: Range) -> Composed:
    """Return the query for the key, as text, and the fingerprint of each row of a range."""
    from psycopg import sql

    return sql.SQL("SELECT {keys}, {hash} FROM {relation} WHERE {where}").format(
        keys=_texts(table), hash=table.fingerprint, relation=table.relation, where=_inside(table, wanted)
    )


def lookup(table: Side, keys: Sequence[Key], extra: Sequence[Composable] = ()) -> Composed:
    """Return the query for the rows with these keys: place of the key, fingerprint, version, is_settled, EXTRA."""
    from psycopg import sql

    names = [sql.Identifier(f"k{number}") for number in range(len(table.key))]
    arrays = [sql.SQL("unnest({}::text[])").format(sql.Literal([key[place] for key in keys])) for place in
              range(len(table.key))]  # fmt: skip
    same = [
        sql.SQL("{} = r.{}::{}").format(expression, name, type_)
        for expression, name, type_ in zip(table.key, names, table.key_types, strict=True)
    ]
    if table.row_filter is not None:
        same.append(table.row_filter)
    found = [table.fingerprint, sql.SQL("t.xmin::text"), sql.SQL("t.xmax::text = '0'"), *extra]
    aliases = [sql.Identifier(f"v{number}") for number in range(len(found))]
    return sql.SQL(
        "SELECT r.place, found.* FROM ROWS FROM ({arrays}) WITH ORDINALITY AS r ({names}, place),"
        " LATERAL (SELECT {found} FROM {relation} WHERE {same}) found"
    ).format(
        arrays=sql.SQL(", ").join(arrays),
        names=sql.SQL(", ").join(names),
        found=_aliased(found, aliases),
        relation=table.relation,
        same=sql.SQL(" AND ").join(same),
    )


def page_count(table: Side) -> Composed:
    """Return the query for the number of pages of a table; 0 for a partitioned one."""
    from psycopg import sql

    return sql.SQL("SELECT pg_catalog.pg_relation_size({}::regclass) / current_setting('block_size')::bigint").format(
        sql.Literal(table.name.as_string(None))
    )


def whole_table(table: Side, first_page: int, pages: int | None) -> Composed:
    """Return the query for the rows of pages of a table: their number, the sum of fingerprints, that of versions.

    Args:
        table: the table.
        first_page: the first page.
        pages: how many pages; None is all that follow.
    """
    from psycopg import sql

    conditions = [sql.SQL("t.ctid >= {}::pg_catalog.tid").format(sql.Literal(f"({first_page},0)"))]
    if pages is not None:
        conditions.append(sql.SQL("t.ctid < {}::pg_catalog.tid").format(sql.Literal(f"({first_page + pages},0)")))
    if table.row_filter is not None:
        conditions.append(table.row_filter)
    return sql.SQL(
        "SELECT count(*), coalesce(sum({hash}), 0),"
        " coalesce(sum(pg_catalog.hashtextextended((t.tableoid, t.ctid, t.xmin)::text, 0)), 0)"
        " FROM {relation} WHERE {where}"
    ).format(hash=table.fingerprint, relation=table.relation, where=sql.SQL(" AND ").join(conditions))


def _texts(table: Side) -> Composed:
    from psycopg import sql

    return sql.SQL(", ").join(sql.SQL("{}::text").format(expression) for expression in table.key)


def _aliased(expressions: Sequence[Composable], names: Sequence[Composable]) -> Composed:
    from psycopg import sql

    return sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(expression, name) for expression, name in zip(expressions, names, strict=True)
    )


def _inside(table: Side, wanted: Range, *, is_filtered: bool = True) -> Composed:
    """Return the condition that a row is in a range, so that an index on the key serves it."""
    from psycopg import sql

    def compared(operator: str, key: Key) -> Composed:
        bound = sql.SQL(", ").join(
            sql.SQL("{}::{}").format(sql.Literal(part), type_) for part, type_ in zip(key, table.key_types, strict=True)
        )
        return sql.SQL("ROW({}) {} ROW({})").format(sql.SQL(", ").join(table.key), sql.SQL(operator), bound)

    conditions: list[Composable] = []
    if wanted.low is not None:
        conditions.append(compared(">", wanted.low))
    if wanted.high is not None:
        conditions.append(compared("<=", wanted.high))
    if is_filtered and table.row_filter is not None:
        conditions.append(table.row_filter)
    return sql.SQL(" AND ").join(conditions or [sql.SQL("true")])
