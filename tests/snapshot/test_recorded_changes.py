"""The rule for a chunk's rows, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rdsrepl.snapshot.recorded_changes import Applied, ColumnsChanged, Key, RecordedChanges, Row, must_read_again
from rdsrepl.snapshot.visibility import ServerSnapshot
from rdsrepl.tail.model import Column, Relation, Transaction

COLUMNS = (Column("id", 20, -1, True), Column("a", 25, -1, False), Column("big", 25, -1, False))
ITEMS = Relation(16400, "public", "items", "d", COLUMNS)
OTHER = replace(ITEMS, oid=16500, table="other")


def tx(xid: int) -> Transaction:
    return Transaction.of(xid, 1, 0x1000 * xid, 0)


def chunk(*ids: int) -> dict[Key, Row]:
    return {(str(n),): (str(n), '"read"', f'"big {n}"') for n in ids}


def ids(rows: dict[Key, Row]) -> list[int]:
    return [int(key[0]) for key in rows]


@pytest.fixture
def recorded() -> RecordedChanges:
    return RecordedChanges()


def test_a_chunk_without_recorded_changes_stays_as_it_is(recorded: RecordedChanges) -> None:
    rows = chunk(1, 2, 3)
    assert recorded.apply(ITEMS, rows) == Applied(0, frozenset())
    assert rows == chunk(1, 2, 3)


def test_an_unchanged_toast_value_keeps_the_value_of_the_chunk(recorded: RecordedChanges) -> None:
    recorded.update(ITEMS, tx(7), ("2",), None, ("2", '"new"', None))
    rows = chunk(1, 2, 3)
    assert recorded.apply(ITEMS, rows) == Applied(1, frozenset())
    assert rows[("2",)] == ("2", '"new"', '"big 2"')
    assert ids(rows) == [1, 2, 3]


def test_the_last_change_of_a_row_is_what_stays(recorded: RecordedChanges) -> None:
    recorded.update(ITEMS, tx(7), ("2",), ("2",), ("2", '"first"', '"large"'))
    recorded.update(ITEMS, tx(8), ("2",), None, ("2", "null", None))
    rows = chunk(2)
    assert recorded.apply(ITEMS, rows) == Applied(1, frozenset())
    assert rows == {("2",): ("2", "null", '"large"')}


def test_a_deleted_and_an_inserted_row_leave_the_chunk(recorded: RecordedChanges) -> None:
    recorded.delete(ITEMS, tx(7), ("1",))
    recorded.delete(ITEMS, tx(7), ("2",))
    recorded.insert(ITEMS, tx(8), ("2",), ("2", '"again"', '"whole"'))
    recorded.update(ITEMS, tx(9), ("2",), None, ("2", '"later"', None))
    rows = chunk(1, 2, 3)
    assert recorded.apply(ITEMS, rows).conflicts == 2
    assert ids(rows) == [3], "the stream wrote the second row whole"


def test_truncate_removes_all_rows_of_its_table(recorded: RecordedChanges) -> None:
    recorded.truncate(OTHER, tx(7))
    rows = chunk(1, 2)
    assert recorded.apply(ITEMS, rows).conflicts == 0
    recorded.truncate(ITEMS, tx(7))
    assert recorded.apply(ITEMS, rows).conflicts == 2
    assert not rows


def test_changes_of_another_table_do_not_count(recorded: RecordedChanges) -> None:
    recorded.delete(OTHER, tx(7), ("1",))
    rows = chunk(1)
    assert recorded.apply(ITEMS, rows) == Applied(0, frozenset())
    assert rows == chunk(1)


def test_a_moved_row_that_the_stream_wrote_whole_leaves_the_chunk(recorded: RecordedChanges) -> None:
    assert not must_read_again(("9",), ("2",), ("9", '"moved"', '"whole"'))
    recorded.update(ITEMS, tx(7), ("9",), ("2",), ("9", '"moved"', '"whole"'))
    rows = chunk(1, 2, 3)
    assert recorded.apply(ITEMS, rows) == Applied(1, frozenset())
    assert ids(rows) == [1, 3]


def test_a_moved_row_with_a_missing_value_is_read_again(recorded: RecordedChanges) -> None:
    assert must_read_again(("0",), ("2",), ("0", '"moved"', None))
    recorded.update(ITEMS, tx(7), ("0",), ("2",), ("0", '"moved"', None))
    rows = chunk(1, 2, 3)
    assert recorded.apply(ITEMS, rows) == Applied(1, frozenset({("0",)}))
    assert ids(rows) == [1, 3]
    # A snapshot that does not see the move is no proof, also if it is asked for the key.
    asked: dict[Key, Row] = {}
    assert recorded.apply(ITEMS, asked).read_again == {("0",)}
    # One that sees it has the row whole.
    recorded.forget_seen(ServerSnapshot(8, 8, frozenset()))
    rows = {("0",): ("0", '"moved"', '"big 2"')}
    assert recorded.apply(ITEMS, rows) == Applied(0, frozenset())
    assert ids(rows) == [0]


def test_a_key_is_not_read_again_if_its_row_left_it(recorded: RecordedChanges) -> None:
    recorded.update(ITEMS, tx(7), ("5",), ("2",), ("5", '"moved"', None))
    recorded.update(ITEMS, tx(7), ("6",), ("5",), ("6", '"moved"', None))
    assert recorded.apply(ITEMS, {}).read_again == {("6",)}
    recorded.delete(ITEMS, tx(8), ("6",))
    assert recorded.apply(ITEMS, {}).read_again == frozenset()


def test_the_value_of_another_row_never_comes_with_a_moved_key(recorded: RecordedChanges) -> None:
    """From a standby the rows may contain recorded changes already: key 1 belongs to another row there."""
    recorded.update(ITEMS, tx(7), ("2",), ("1",), ("2", '"moved"', None))
    recorded.insert(ITEMS, tx(8), ("1",), ("1", '"other"', '"big other"'))
    rows: dict[Key, Row] = {("1",): ("1", '"other"', '"big other"'), ("2",): ("2", '"moved"', '"big 1"')}
    assert recorded.apply(ITEMS, rows).read_again == {("2",)}
    assert not rows


def test_applying_what_the_rows_contain_does_no_harm(recorded: RecordedChanges) -> None:
    recorded.update(ITEMS, tx(7), ("1",), None, ("1", '"first"', '"old big"'))
    recorded.update(ITEMS, tx(8), ("1",), None, ("1", '"second"', '"new big"'))
    recorded.update(ITEMS, tx(9), ("1",), None, ("1", '"third"', None))
    rows: dict[Key, Row] = {("1",): ("1", '"third"', '"new big"')}
    recorded.apply(ITEMS, rows)
    assert rows == {("1",): ("1", '"third"', '"new big"')}


def test_other_columns_send_the_chunk_back_unchanged(recorded: RecordedChanges) -> None:
    recorded.delete(ITEMS, tx(7), ("1",))
    for altered in (
        replace(ITEMS, columns=(*COLUMNS, Column("more", 23, -1, False))),
        replace(ITEMS, columns=(COLUMNS[0], replace(COLUMNS[1], type_oid=23), COLUMNS[2])),
        replace(ITEMS, columns=(COLUMNS[0], replace(COLUMNS[1], name="b"), COLUMNS[2])),
        replace(ITEMS, columns=(COLUMNS[0], replace(COLUMNS[1], is_key=True), COLUMNS[2])),
        replace(ITEMS, table="renamed"),
    ):
        recorded.clear()
        recorded.delete(ITEMS, tx(7), ("1",))
        recorded.update(altered, tx(8), ("2",), None, ("2",) * len(altered.columns))
        rows = chunk(1, 2)
        with pytest.raises(ColumnsChanged, match=r"public\.items"):
            recorded.apply(ITEMS, rows)
        assert rows == chunk(1, 2)
        recorded.forget_seen(ServerSnapshot(8, 8, frozenset()))
        with pytest.raises(ColumnsChanged):
            recorded.apply(ITEMS, rows)
        assert recorded.apply(altered, {}) == Applied(0, frozenset())


def test_a_wider_varchar_is_the_same_column(recorded: RecordedChanges) -> None:
    recorded.delete(replace(ITEMS, columns=(COLUMNS[0], replace(COLUMNS[1], typmod=24), COLUMNS[2])), tx(7), ("1",))
    rows = chunk(1)
    assert recorded.apply(ITEMS, rows).conflicts == 1


def test_only_what_a_snapshot_sees_is_forgotten(recorded: RecordedChanges) -> None:
    for xid in (7, 9, 8):
        recorded.delete(ITEMS, tx(xid), (str(xid),))
    recorded.forget_seen(ServerSnapshot(7, 9, frozenset({7})))
    rows = chunk(7, 8, 9)
    recorded.apply(ITEMS, rows)
    assert ids(rows) == [8]
    recorded.forget_seen(ServerSnapshot(9, 10, frozenset()))
    assert recorded.size == 0


def test_the_ids_of_32_bits_are_compared_with_those_of_64(recorded: RecordedChanges) -> None:
    recorded.delete(ITEMS, tx(4), ("4",))
    recorded.delete(ITEMS, tx((1 << 32) - 4), ("1",))
    recorded.forget_seen(ServerSnapshot((1 << 32) + 4, (1 << 32) + 5, frozenset({(1 << 32) + 4})))
    rows = chunk(1, 4)
    recorded.apply(ITEMS, rows)
    assert ids(rows) == [1]


def test_a_standby_counts_by_position(recorded: RecordedChanges) -> None:
    for xid in (7, 8, 9):
        recorded.delete(ITEMS, tx(xid), (str(xid),))
    recorded.forget_before(0x8000)
    rows = chunk(7, 8, 9)
    recorded.apply(ITEMS, rows)
    assert ids(rows) == [7], "the commit record that begins at the position is not replayed"


def test_the_changes_of_a_transaction_stay_together(recorded: RecordedChanges) -> None:
    """A writer that marks values makes a copy of the transaction for each change."""
    first = tx(7)
    recorded.delete(ITEMS, first, ("1",))
    recorded.delete(ITEMS, first.with_text(["a"]), ("2",))
    together = recorded.size
    recorded.delete(ITEMS, tx(8), ("2",))
    assert recorded.size - together > together / 2
    recorded.forget_seen(ServerSnapshot(8, 9, frozenset({8})))
    rows = chunk(1, 2)
    recorded.apply(ITEMS, rows)
    assert ids(rows) == [1]


def test_the_size_grows_with_the_values_and_falls_again(recorded: RecordedChanges) -> None:
    assert recorded.size == 0
    recorded.update(ITEMS, tx(7), ("1",), None, ("1", '"a"', None))
    small = recorded.size
    recorded.update(ITEMS, tx(8), ("1",), None, ("1", '"a"', '"' + "x" * 100_000 + '"'))
    assert recorded.size > small + 100_000
    recorded.forget_seen(ServerSnapshot(8, 9, frozenset({8})))
    assert recorded.size > 100_000
    recorded.clear()
    assert recorded.size == 0
    rows = chunk(1)
    assert recorded.apply(ITEMS, rows).conflicts == 0


def test_an_inserted_row_is_not_kept_in_memory(recorded: RecordedChanges) -> None:
    recorded.insert(ITEMS, tx(7), ("1",), ("1", '"a"', "x" * 1_000_000))
    assert recorded.size < 10_000
