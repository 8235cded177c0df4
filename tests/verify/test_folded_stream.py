"""What lines of a stream leave behind, whatever their order across keys and however often they come."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.units import format_size
from rdsrepl.verify.folded_stream import FoldedStream, Number, Pair, Position, parsed, table_text
from rdsrepl.verify.stream_input import FileInput


def _line(op: str, key: int, commit: int, after: object = None, **more: object) -> bytes:
    """Return a line as ``docs/formats.md`` and ``docs/snapshot.md`` describe it."""
    event = {"op": op, "schema": "s", "table": "t", "key": None if op == "t" else {"id": key}, "before": None}
    end = {"timeline": 1, "commit_lsn": str(Lsn(commit)), "commit_time": "2026-01-01T00:00:00+00:00", "seq": 1}
    return json.dumps({**event, "after": after, **end, **more}).encode() + b"\n"


@pytest.fixture
def folded(tmp_path: Path) -> Iterator[FoldedStream]:
    made = FoldedStream(tmp_path / "rows", in_one_order=True)
    yield made
    made.close()


def _fold(folded: FoldedStream, lines: Sequence[bytes], before: Position | None = None) -> list[Any]:
    """Fold lines; return the rows."""
    folded.fold(lines, before=before, where=lambda number: f"x, line {number}")
    return _rows(folded.pairs(table_text("s", "t")))


def _rows(pairs: Iterator[Pair]) -> list[Any]:
    rows = [pair.there for pair in pairs if pair.there is not None]
    return [{name: int(value.text) if isinstance(value, Number) else value for name, value in row.items()}
            for row in sorted(rows, key=lambda row: int(row["id"].text))]  # fmt: skip


def test_how_much_of_a_file_was_read(folded: FoldedStream, tmp_path: Path) -> None:
    """A stream of some gigabytes takes minutes; what is shown meanwhile has the size of the file, if that is known."""
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    lines = [_line("c", 1, 16, {"id": 1}), _line("c", 2, 16, {"id": 2})]
    plain.write_bytes(b"".join(lines))
    packed.write_bytes(gzip.compress(lines[1]))
    shown: list[tuple[str, str]] = []
    with ExitStack() as stack:
        FileInput(stack, [plain, packed]).read_present(folded, lambda what, state: shown.append((what, state)))
    length, half = (format_size(sum(map(len, some))) for some in (lines, lines[1:]))
    assert [what for what, _ in shown] == ["reading", "reading"]
    assert shown[0][1].startswith(f"{plain}: ") and shown[0][1].endswith(f" of {length}")
    assert shown[1][1] == f"{packed}: {half}"


def test_lines_that_come_again_change_nothing(tmp_path: Path) -> None:
    """After a kill the same lines come again; a file may end in the middle of them."""
    lines = [
        _line("c", 1, 16, {"id": 1, "v": "a"}, seq=1),
        _line("u", 1, 16, {"id": 1, "v": "b"}, seq=2),
        _line("d", 1, 16, seq=3),
    ]
    for end in range(4):
        folded = FoldedStream(tmp_path / str(end), in_one_order=True)
        assert _fold(folded, [*lines, *lines[:end]]) == [], "it was deleted last"
        folded.close()
    early = FoldedStream(tmp_path / "early", in_one_order=True)
    assert _fold(early, lines[:2]) == [{"id": 1, "v": "b"}]
    early.close()


def test_a_row_of_a_snapshot_in_the_middle_is_the_state_of_its_key(folded: FoldedStream) -> None:
    """Its identity is that of the marker of its chunk; an earlier change that comes again does not replace it."""
    change = _line("u", 1, 20, {"id": 1, "v": "old"}, unchanged=["big"])
    lines = [
        change,
        _line("d", 2, 21),
        _line("r", 1, 30, {"id": 1, "v": "new", "big": "B"}, snapshot={"id": "n", "chunk": 1, "last": False}),
        _line("r", 2, 30, {"id": 2, "v": "again", "big": "C"}, seq=2, snapshot={"id": "n", "chunk": 1, "last": True}),
        change,
        _line("u", 1, 40, {"id": 1, "v": "newer"}, unchanged=["big"]),
    ]
    assert _fold(folded, lines) == [{"id": 1, "v": "newer", "big": "B"}, {"id": 2, "v": "again", "big": "C"}]


def test_rows_of_a_chunk_that_was_read_again_replace_the_earlier_ones(folded: FoldedStream) -> None:
    """A tail that was killed within a chunk writes its rows again, with the identity of another marker."""
    first = [_line("r", key, 30, {"id": key, "v": "first"}, seq=key) for key in (1, 2)]
    between = [_line("d", 1, 31), _line("t", 0, 32), _line("c", 3, 33, {"id": 3, "v": "c"})]
    again = [_line("r", key, 40, {"id": key, "v": "again"}, seq=key) for key in (2, 3)]
    assert _fold(folded, first) == [{"id": 1, "v": "first"}, {"id": 2, "v": "first"}]
    assert _fold(folded, between) == [{"id": 3, "v": "c"}]
    assert _fold(folded, again) == [{"id": 2, "v": "again"}, {"id": 3, "v": "again"}]


def test_a_position_is_compared_with_its_timeline(folded: FoldedStream) -> None:
    """A change of an earlier timeline may have a higher LSN, if the failover lost it; its consumers have it still."""
    lines = [_line("c", 1, 90, {"id": 1}), _line("c", 2, 50, {"id": 2}, timeline=2), _line("c", 3, 70, {"id": 3})]
    assert _fold(folded, lines, Position(2, Lsn(50))) == [{"id": 1}, {"id": 3}]
    assert folded.latest == Position(2, Lsn(50))


def test_values_that_are_not_known_are_not_compared(folded: FoldedStream) -> None:
    """Values written as text, values left out because of their size: what they were before does not count."""
    _fold(folded, [_line("c", 1, 10, {"id": 1, "a": "1", "b": "2"})])
    assert _fold(folded, [_line("u", 1, 11, {"id": 1, "a": "(9)", "b": "3"}, as_text=["a"])]) == [{"id": 1, "b": "3"}]
    assert _fold(folded, [_line("u", 1, 12, {"id": 1, "a": "4"}, dropped=["b"])]) == [{"id": 1, "a": "4"}]


def test_across_shards_the_values_of_a_row_under_another_key_are_not_known(tmp_path: Path) -> None:
    """The shard of the earlier key may be read later, or have a new row with that key."""
    moved = _line("u", 2, 20, {"id": 2, "n": 1}, before={"id": 1}, unchanged=["big"])
    other = [_line("c", 1, 10, {"id": 1, "n": 1, "big": "A"}), _line("c", 1, 30, {"id": 1, "n": 2, "big": "B"})]
    for number, lines in enumerate(([*other, moved], [other[0], moved, other[1]], [moved, *other])):
        folded = FoldedStream(tmp_path / str(number), in_one_order=False)
        assert _fold(folded, lines) == [{"id": 1, "n": 2, "big": "B"}, {"id": 2, "n": 1}]
        folded.close()


def test_keys_before_a_time_are_not_in_the_stream(folded: FoldedStream) -> None:
    """A shard may have lost what came after a line that another shard still has."""
    early, late = ({"commit_time": f"2026-01-0{day}T00:00:00+00:00"} for day in (1, 3))
    _fold(folded, [_line("c", 1, 10, {"id": 1}, **early), _line("c", 2, 20, {"id": 2}, **late)])
    since = "2026-01-02T00:00:00+00:00"
    assert [pair.is_in_stream for pair in folded.pairs(table_text("s", "t"), since)] == [False, True]
    _fold(folded, [_line("t", 0, 15, **early)])
    assert [pair.is_in_stream for pair in folded.pairs(table_text("s", "t"), since)] == [False, True]
    _fold(folded, [_line("t", 0, 25, **late)])
    assert [(pair.is_in_stream, pair.there) for pair in folded.pairs(table_text("s", "t"), since)] == [
        (True, None),
        (True, None),
    ]


@pytest.mark.parametrize("line", [b"{", b"{}", b"[]", b'"x"', b"5", _line("c", 1, 1).replace(b"0/1", b"zero")])
def test_other_lines_are_refused_with_their_place(folded: FoldedStream, line: bytes) -> None:
    with pytest.raises(BadValue, match="x, line 2 is not a change"):
        _fold(folded, [_line("c", 1, 1, {"id": 1}), line])


_CHANGES = st.lists(st.tuples(st.sampled_from("crudt"), st.integers(1, 3), st.integers(0, 9)), max_size=14)


@settings(max_examples=60)
@given(changes=_CHANGES, data=st.data())
def test_shards_and_repeats_do_not_matter(tmp_path_factory: pytest.TempPathFactory, changes: Any, data: Any) -> None:
    """However the shards of keys are interleaved, and whatever is sent again: the rows are those of the one order."""
    table: dict[int, int] = {}
    shards: dict[int, list[bytes]] = {}
    for commit, (op, key, value) in enumerate(changes, 1):
        after = {"id": key, "v": value} if op in "cru" else None
        shards.setdefault(0 if op == "t" else key, []).append(_line(op, key, commit, after))
        if op == "t":
            table.clear()
        elif after is None:
            table.pop(key, None)
        else:
            table[key] = value
    chance = random.Random(data.draw(st.integers(0, 1_000)))
    for lines in shards.values():
        again = chance.randrange(len(lines) + 1)
        lines.extend(lines[again:])
    mixed = []
    while waiting := [lines for lines in shards.values() if lines]:
        mixed.append(chance.choice(waiting).pop(0))
    folded = FoldedStream(tmp_path_factory.mktemp("folded") / "rows", in_one_order=False)
    assert _fold(folded, mixed) == [{"id": key, "v": value} for key, value in sorted(table.items())]
    folded.close()


def test_numbers_are_equal_digit_for_digit() -> None:
    assert parsed(b'{"n":1.0}') != parsed(b'{"n":1.00}')
    assert parsed(b'{"n":1}') != parsed(b'{"n":"1"}')
