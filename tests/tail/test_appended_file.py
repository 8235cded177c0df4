"""What a file has already is left out: by the identity of each line, up to the file's last line that the server has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rdsrepl.errors import Refused
from rdsrepl.lsn import Lsn
from rdsrepl.tail.appended_file import AppendedFile, LineIdentity, appended_file, identity_in_debezium, identity_in_json
from rdsrepl.tail.model import DecodedBatch
from rdsrepl.tail.timelines import Timelines

FAR = 1 << 40


def line(commit_lsn: int, seq: int, timeline: int = 1, size: int = 0) -> str:
    value = "x" * size + "\u2028\x85"
    fields = {"after": value, "timeline": timeline, "commit_lsn": str(Lsn(commit_lsn)), "seq": seq}
    return json.dumps(fields, ensure_ascii=False) + "\n"


Opener = Callable[..., AppendedFile]


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[Opener]:
    """Write a text to a file, and open it to append."""
    with ExitStack() as files:

        def opened(text: str, format: str = "json") -> AppendedFile:
            path = tmp_path / "out"
            path.write_text(text)
            file = files.enter_context(path.open("ab"))
            made = appended_file(file.fileno(), identity_in_json if format == "json" else identity_in_debezium, "g")
            assert made is not None
            return made

        yield opened


def left(file: AppendedFile, *lines: str) -> list[str]:
    """Return what is left of lines that come one change at a time."""
    return [
        part for one in lines for part in file.without_repeats(DecodedBatch([one], 1, [], in_transaction=True)).lines
    ]


@pytest.mark.parametrize("size", [0, 1 << 20, (1 << 20) - 60, 3 << 20])
def test_lines_up_to_the_last_one_of_the_file_are_left_out(open_file: Opener, size: int) -> None:
    """Also when a line is longer than a block that is read, or ends at its border."""
    lines = [line(100, 1), line(100, 2, size=size), line(200, 1, size=size), line(200, 2)]
    for whole in range(1, 5):
        file = open_file("".join(lines[:whole]))
        assert file.connected(Timelines(1), 50, FAR)
        assert file.is_active and not file.is_verified
        assert left(file, *lines) == lines[whole:]
        assert file.is_verified and file.left_out == whole
        assert file.is_active is (whole == 4)


def test_an_empty_file_and_one_that_is_older_than_the_slot(open_file: Opener) -> None:
    file = open_file("")
    assert file.connected(Timelines(1), 50, FAR) and file.is_verified and not file.is_active
    file = open_file(line(100, 1))
    assert file.connected(Timelines(1), 120, FAR) and file.is_verified
    assert left(file, line(130, 1)) == [line(130, 1)]


def test_a_commit_without_lines_is_kept(open_file: Opener) -> None:
    file = open_file(line(100, 1))
    file.connected(Timelines(1), 50, FAR)
    batch = DecodedBatch([line(100, 1)], 1, [(140, 1)], in_transaction=False)
    assert file.without_repeats(batch) == DecodedBatch([], 0, [(140, 0)], in_transaction=False)


def test_after_a_failover_the_shared_history_ends_at_the_fork(open_file: Opener) -> None:
    """Lines that the old primary sent after the fork stay in the file; what the new one has is not repeated."""
    old = [line(100, 1), line(200, 1), line(300, 1), line(300, 2)]
    file = open_file("".join(old))
    promoted = Timelines(2, ((1, 250),))
    assert file.connected(promoted, 50, FAR)
    new = [line(280, 1, timeline=2), line(300, 1, timeline=2)]
    assert left(file, line(100, 1), line(200, 1), *new) == new
    # The next run: the last line is the new primary's.
    file = open_file("".join([*old, new[0]]))
    assert file.connected(promoted, 150, FAR)
    assert left(file, line(200, 1), *new) == new[1:]


def test_a_line_outside_of_a_transaction_belongs_to_the_timeline_where_its_record_ends() -> None:
    promoted = Timelines(2, ((1, 250),))
    assert LineIdentity(1, 250, 0).is_in(promoted) and not LineIdentity(1, 250, 1).is_in(promoted)
    assert LineIdentity(2, 250, 1).is_in(promoted) and not LineIdentity(2, 250, 0).is_in(promoted)
    assert LineIdentity(0, 5, 1).is_in(Timelines(0))


def test_a_change_that_does_not_come_ends_the_run(open_file: Opener) -> None:
    foreign = line(100, 2)
    for lines, reached in (([line(100, 1), line(200, 1)], None), ([line(100, 1)], 300)):
        file = open_file(foreign)
        file.connected(Timelines(1), 50, FAR)
        with pytest.raises(Refused, match="ends with the change 0/64, number 2, of timeline 1, which slot g"):
            assert left(file, *lines) == []
            file.reached(reached or 0)
        assert not file.is_verified
    with pytest.raises(Refused):
        open_file(foreign).connected(Timelines(1), 10, 80)


@pytest.mark.parametrize("opening", ["[", '{"[{\\"": '])
def test_a_value_that_is_nested_deeper_than_the_parser_goes(open_file: Opener, opening: str) -> None:
    """PostgreSQL's jsonb nests thousands of values; such a row must not end each run that appends to the file."""
    nested = opening * 5000 + "1" + ("]" if opening == "[" else "}") * 5000
    fields = '{"after":{"v":%},"timeline":1,"commit_lsn":"0/C8","seq":1}'
    deep = fields.replace("%", nested) + "\n"
    event = '{"key":{},"value":{"after":%,"source":{"timeline":1,"commit_lsn":200,"seq":1}}}'.replace("%", nested)
    with pytest.raises(RecursionError):
        json.loads(deep)
    assert identity_in_json(deep) == identity_in_debezium(event.encode()) == LineIdentity(1, 200, 1)
    assert identity_in_json(deep[:-3]) is None
    assert identity_in_json(fields.replace("%", "1").replace("0/C8", "none")) is None
    file = open_file(line(100, 1) + deep)
    assert file.connected(Timelines(1), 50, FAR)
    assert left(file, line(100, 1), deep, line(300, 1)) == [line(300, 1)]


def test_a_file_in_another_format_is_unknown(open_file: Opener) -> None:
    for text in ("one\ntwo\n", line(100, 1) + '{"a": 1}\n[]\n', line(100, 1) + "nope\n{}\n"):
        file = open_file(text)
        assert not file.connected(Timelines(1), 50, FAR)
        assert left(file, line(100, 1)) == [line(100, 1)]


def test_descriptors_that_are_not_appended_to(tmp_path: Path) -> None:
    with (tmp_path / "pipe").open("wb") as file:
        file.write(b"some\n" * 3)
        file.flush()
        file.seek(5)
        assert appended_file(file.fileno(), identity_in_json, "g") is None
    with Path("/dev/null").open("wb") as null:
        assert appended_file(null.fileno(), identity_in_json, "g") is None


def event(op: str, seq: int) -> str:
    value = {"op": op, "source": {"timeline": 1, "commit_lsn": 100, "seq": seq}}
    return json.dumps({"key": {"id": 1}, "value": value}) + "\n"


def test_the_lines_of_one_change_of_a_key(open_file: Opener) -> None:
    """A delete, its tombstone and a create; the file may end after each of them."""
    tombstone = '{"key":{"id":1},"value":null}\n'
    lines = [event("c", 2), event("d", 3), tombstone, event("c", 4), event("d", 6), tombstone]
    for whole in range(1, len(lines) + 1):
        file = open_file("".join(lines[:whole]), "debezium")
        assert file.connected(Timelines(1), 50, FAR)
        came = left(file, lines[0], "".join(lines[1:4]), "".join(lines[4:]))
        assert came == lines[whole:], whole
