"""No statement of a comparison runs long: one that takes too long is done in parts, and nothing is left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from rdsrepl.verify import limited, ranges, statements
from rdsrepl.verify.ranges import Pair
from rdsrepl.verify.structure import ComparedColumn, ComparedTable
from tests.fixtures.postgres import Database

_TABLE = ComparedTable(
    "public", "t", (ComparedColumn("id", "int4"),), (ComparedColumn("id", "int4"), ComparedColumn("v", "text")),
    "r", "r", None, 400,
)  # fmt: skip
# Each row of the source takes a millisecond.
_SLOW = replace(_TABLE, row_filter="pg_catalog.pg_sleep(0.001) IS NOT NULL")


@pytest.fixture
def pair(db18: Database) -> Iterator[Pair]:
    db18.run("CREATE TABLE t (id int PRIMARY KEY, v text)",
             "INSERT INTO t SELECT i, 'x' FROM generate_series(1, 400) i",
             "CREATE SCHEMA other", "CREATE TABLE other.t (LIKE t INCLUDING ALL)", "INSERT INTO other.t TABLE t",
             "DELETE FROM other.t WHERE id = 7", "UPDATE other.t SET v = 'y' WHERE id = 301")  # fmt: skip
    with closing(db18.connect()) as here, closing(db18.connect()) as there:
        here.execute("SET statement_timeout = '50ms'")
        made = Pair(here, there)
        yield made
        made.close()


def test_ranges_that_take_too_long_are_split(pair: Pair) -> None:
    source = statements.side(_SLOW, is_source=True, hashes_records=True, exact_text=False)
    target = statements.side(replace(_TABLE, schema="other"), is_source=False, hashes_records=True, exact_text=False)
    seen: list[int] = []
    found = ranges.differences(pair, source, target, seen.append)
    assert (found.source_rows, found.target_rows, found.suspects) == (400, 399, {("7",), ("301",)})
    assert found.is_complete
    assert seen[-1] == 400


def test_keys_are_read_in_parts(pair: Pair) -> None:
    side = statements.side(_SLOW, is_source=True, hashes_records=True, exact_text=False)
    keys = [(str(number),) for number in range(300, 500)]

    parts = limited.in_parts(pair.source, keys, lambda some: statements.lookup(side, some))
    assert sorted(some[row[0] - 1][0] for some, rows in parts for row in rows) == [
        str(number) for number in range(300, 401)
    ]


def test_a_single_item_takes_as_long_as_it_needs(pair: Pair) -> None:
    side = statements.side(
        replace(_TABLE, row_filter="pg_catalog.pg_sleep(0.1) IS NOT NULL"), is_source=True, hashes_records=True,
        exact_text=False,
    )  # fmt: skip
    ((keys, rows),) = limited.in_parts(pair.source, [("5",)], lambda some: statements.lookup(side, some))
    assert (keys, len(rows)) == ([("5",)], 1)
    with pytest.raises(limited.TookTooLongError):
        limited.fetch(pair.source, statements.lookup(side, [("5",)]))
