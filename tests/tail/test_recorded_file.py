"""A file whose end is known by a recorded position: what a killed run leaves, and states in which a run must refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rdsrepl.errors import Error, InUse, Refused, SinkFailed
from rdsrepl.tail.sinks.output_files import forget_positions, positions_path, recorded_file
from rdsrepl.tail.sinks.position_file import StreamSource
from rdsrepl.tail.sinks.recorded_file import RecordedFileSink
from rdsrepl.tail.timelines import Timelines
from tests.fixtures.postgres import confirmed_lsn
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

SOURCE = StreamSource("app", "g", "wal2json", "raw")
SYSTEM, FAR = "7000000000000000001", 1 << 40
FIRST = Timelines(1)


class Output:
    """Opens files as the shell does, and hands them over."""

    def __init__(self, files: ExitStack) -> None:
        self._files = files
        self.warnings: list[str] = []
        self.repaired = 0

    def open(self, path: Path, mode: str = "ab", source: StreamSource = SOURCE) -> RecordedFileSink:
        file = self._files.enter_context(path.open(mode))

        def repair(fd: int) -> None:
            self.repaired += 1

        sink = recorded_file(file.fileno(), source, repair, self.warnings.append)
        assert sink is not None
        self._files.callback(sink.close)
        return sink

    def start(self, path: Path, mode: str = "ab", confirmed: int = 10) -> RecordedFileSink:
        """Open a file and connect; the stream starts where the file ends."""
        sink = self.open(path, mode)
        lsn = sink.resume_lsn(SYSTEM, Timelines(1), FAR, in_recovery=False)
        sink.connected(max(lsn, confirmed), SYSTEM, Timelines(1))
        return sink


@pytest.fixture
def output() -> Iterator[Output]:
    with ExitStack() as files:
        yield Output(files)


def put(sink: RecordedFileSink, number: int, text: str, lsn: int | None = None) -> None:
    """Hand over a batch and wait until it is durable."""
    if lsn is None:
        sink.put(number, [text])
    else:
        sink.put_until(number, [text], lsn)
    wait_until(lambda: sink.durable >= number, "it is durable")


def killed(path: Path, copy: Path) -> Path:
    """Return a copy of a file and its positions as a run leaves them that is killed now."""
    copy.mkdir()
    for one in (path, positions_path(path)):
        shutil.copy(one, copy)
    return copy / path.name


def resume(sink: RecordedFileSink, timelines: Timelines = FIRST, system: str = SYSTEM, end: int = FAR) -> int:
    return sink.resume_lsn(system, timelines, end, in_recovery=False)


def test_what_follows_the_last_transaction_is_removed(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "B\none\nC\n", 100)
    put(sink, 2, "B\ntw")
    again = killed(path, tmp_path / "killed")
    sink = output.open(again)
    assert resume(sink) == 100
    assert sink.connected(100, SYSTEM, Timelines(1)) == 4
    put(sink, 1, "B\ntwo\nC\n", 200)
    put(sink, 2, "", 300)  # nothing but a position of the server
    sink.close()
    assert again.read_text() == "B\none\nC\nB\ntwo\nC\n"
    assert resume(output.open(again)) == 300
    assert output.warnings == [] and output.repaired == 1


def test_a_position_never_goes_back(output: Output, tmp_path: Path) -> None:
    """The first keepalive of a connection has the position that the slot has confirmed, not the one it starts at."""
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "one\n", 100)
    put(sink, 2, "", 50)
    put(sink, 3, "message\n")
    put(sink, 4, "", 100)
    sink = output.open(killed(path, tmp_path / "killed"))
    assert resume(sink) == 100
    assert sink.connected(100, SYSTEM, FIRST) == len("message\n")


def test_a_lost_connection_within_a_transaction_removes_its_beginning(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "one\n", 100)
    put(sink, 2, "tw")
    assert resume(sink) == 100
    assert sink.connected(100, SYSTEM, Timelines(1)) == 2
    put(sink, 3, "two\n", 200)
    assert path.read_text() == "one\ntwo\n"


def test_a_file_without_positions_is_appended_to(output: Output, tmp_path: Path) -> None:
    """Of another program, or an older version of this one; from now on it has positions."""
    path = tmp_path / "out"
    path.write_text("old\n")
    sink = output.open(path)
    assert resume(sink) == 0 and output.repaired == 1
    assert "has no recorded position" in output.warnings[0]
    assert sink.connected(10, SYSTEM, Timelines(1)) == 0
    put(sink, 1, "new\n", 20)
    sink.close()
    assert path.read_text() == "old\nnew\n"
    assert resume(output.open(path)) == 20


def test_an_empty_file_is_a_new_one(output: Output, tmp_path: Path) -> None:
    """After ``>``, or where logrotate moved the file away; only after a kill something may come again."""
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "one\n", 100)
    left = killed(path, tmp_path / "killed")
    sink.close()
    assert resume(output.open(path, "wb")) == 0 and output.warnings == []
    left.unlink()
    assert resume(output.open(left)) == 0
    assert "is empty, and the last run, which was killed, wrote 4 bytes" in output.warnings[0]


def test_after_a_failover_the_file_continues_at_the_fork(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "one\n", 100)
    put(sink, 2, "two\n", 200)
    promoted = Timelines(2, ((1, 150),))
    assert resume(sink, promoted) == 150
    assert sink.connected(150, SYSTEM, promoted) == 0
    assert resume(sink, promoted) == 150  # a kill before the first change of the new primary
    put(sink, 3, "new\n", 180)
    assert resume(sink, promoted) == 180
    with pytest.raises(Refused, match="ends at 0/B4 of timeline 2 and the server on timeline 1 does not have"):
        resume(sink)
    assert path.read_text() == "one\ntwo\nnew\n"


def test_another_server_or_an_older_state_of_it_is_refused(output: Output, tmp_path: Path) -> None:
    sink = output.start(tmp_path / "out")
    put(sink, 1, "one\n", 100)
    with pytest.raises(Refused, match=f"was written from the database system {SYSTEM}, and this one is 8"):
        resume(sink, system="8")
    with pytest.raises(Refused, match="ends before that, at 0/50: an older state was restored") as refused:
        resume(sink, end=80)
    assert refused.value.hint is not None and "--at-least-once" in refused.value.hint
    assert sink.resume_lsn(SYSTEM, Timelines(1), 80, in_recovery=True) == 100  # a replica may still receive it


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def damage(path: Path) -> None:
    for at in (100, 4196):
        overwrite(positions_path(path), at, b"\0")


def of_another_version(path: Path) -> None:
    import json
    import zlib

    text = positions_path(path).read_bytes()[:4096].split(b" ", 1)[1].strip()
    later = json.dumps(json.loads(text) | {"version": 2, "sequence": 99}).encode()
    positions_path(path).write_bytes((b"%08x %s" % (zlib.crc32(later), later)).ljust(4095) + b"\n")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, 3), "has 3 bytes, and had 8 at 0/C8: it was truncated"),
    "replaced": (lambda path: overwrite(path, 2, b"x"), "is not the file that the last run wrote"),
    "appended to": (lambda path: append(path, b"mine\n"), "another program wrote the last 5 bytes of "),
    "damaged positions": (damage, "is damaged: it has no valid record"),
    "positions of text": (lambda path: positions_path(path).write_text("{}\n" * 9), "is damaged: it has no valid"),
    "a later version": (of_another_version, "was written by a newer version of this program"),
}


@pytest.mark.parametrize("is_killed", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_another_program_changed_is_refused(
    output: Output, tmp_path: Path, change: str, is_killed: bool
) -> None:
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "one\n", 100)
    put(sink, 2, "two\n", 200)
    if is_killed:
        path = killed(path, tmp_path / "killed")
    else:
        sink.close()
    do, message = CHANGES[change]
    do(path)
    before = path.read_bytes()
    with pytest.raises(Refused) as refused:
        output.open(path)
    assert message in refused.value.message
    assert refused.value.hint is not None and "append to another file" in refused.value.hint
    assert path.read_bytes() == before
    # The remedy: nothing is known of the file any more.
    with path.open("ab") as file:
        forget_positions(file.fileno())
    assert resume(output.open(path)) == 0
    assert path.read_bytes() == before


def test_the_record_before_a_damaged_one_counts(output: Output, tmp_path: Path) -> None:
    """A crash while a record is written: what the file has after the other one comes again."""
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "one\n", 100)
    put(sink, 2, "two\n", 200)
    path = killed(path, tmp_path / "killed")
    newest = max((0, 4096), key=lambda at: b'"0/C8"' in positions_path(path).read_bytes()[at : at + 4096])
    overwrite(positions_path(path), newest + 30, b"\0\0\0")
    sink = output.open(path)
    assert resume(sink) == 100
    assert sink.connected(100, SYSTEM, Timelines(1)) == 4
    assert path.read_text() == "one\n"


def test_a_file_of_another_slot_or_format_is_refused(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "one\n", 100)
    sink.close()
    for other in (StreamSource("app", "h", "wal2json", "raw"), StreamSource("app", "g", "pgoutput", "wal2json")):
        with pytest.raises(Refused, match=r"is of slot g \(wal2json\) of database app in the format raw; this run"):
            output.open(path, source=other)


def test_two_runs_on_one_file(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "out"
    output.start(path)
    with pytest.raises(InUse, match=f"{path} is being written: another process"):
        output.open(path)


def test_copied_positions_do_not_fit_another_file(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "one\n", 100)
    sink.close()
    other = tmp_path / "other"
    other.write_text("other\n")
    shutil.copy(positions_path(path), positions_path(other))
    with pytest.raises(Refused, match="is not the file that the last run wrote"):
        output.open(other)


@pytest.mark.parametrize("change", ["appended to", "truncated"])
def test_another_program_that_changes_the_file_ends_the_run(output: Output, tmp_path: Path, change: str) -> None:
    """Also logrotate with copytruncate. Nothing is confirmed that was written since."""
    path = tmp_path / "out"
    sink = output.start(path)
    put(sink, 1, "one\n", 100)
    CHANGES[change][0](path)
    sink.put_until(2, ["two\n"], 200)
    with pytest.raises(SinkFailed, match="another program changed"):
        wait_until(lambda: sink.durable == 2, "it fails")
    sink.close()
    with pytest.raises(Error):
        output.open(path)


def test_positions_that_cannot_be_recorded(tmp_path: Path) -> None:
    """The file is written as before, with a warning."""
    path, warnings = tmp_path / "out", []
    positions_path(path).mkdir()
    with path.open("ab") as file:
        assert recorded_file(file.fileno(), SOURCE, lambda fd: None, warnings.append) is None
    assert "could not record positions in" in warnings[0]
    with path.open("ab") as file:
        path.unlink()
        assert recorded_file(file.fileno(), SOURCE, lambda fd: None, warnings.append) is None
    assert "has no name" in warnings[1]


@pytest.fixture
def stream(db15: Database) -> Database:
    """A database with table t, its publication p, and the slots g (pgoutput) and w (wal2json)."""
    db15.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "SELECT pg_create_logical_replication_slot('w', 'wal2json')",
    )
    return db15


def tail(rdsrepl: Program, stream: Database, out: Path, *words: str, code: int = 0) -> str:
    """Append what is there until now; return what the tail printed on stderr."""
    with out.open("ab") as file:
        process = rdsrepl.start(
            "slot", "tail", *words, "--until-now", dsn=stream.dsn, stdout=file, stderr=subprocess.PIPE
        )
        _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return str(err, "utf-8")


@pytest.mark.pg15
@pytest.mark.parametrize(("slot", "format"), [("w", "raw"), ("g", "wal2json")])
def test_kills_lose_and_repeat_nothing(
    stream: Database, rdsrepl: Program, tmp_path: Path, slot: str, format: str
) -> None:
    out = tmp_path / "out"
    done = 0
    for pause in (0.0, 0.25, 0.1):
        with out.open("ab") as file:
            process = rdsrepl.start(
                "-q", "slot", "tail", slot, "--format", format, dsn=stream.dsn, stdout=file, stderr=subprocess.DEVNULL
            )
            size = file.tell()
        deadline = time.monotonic() + pause
        while out.stat().st_size == size or time.monotonic() < deadline:
            stream.run("INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 20)")
            done += 20
        process.kill()
        process.wait()
    tail(rdsrepl, stream, out, slot, "--format", format)
    lines = out.read_text().splitlines()
    ids = [int(line.split('"value":')[1].split("}")[0]) for line in lines if '"action":"I"' in line]
    assert ids == list(range(1, done + 1))
    assert lines.count('{"action":"B"}') == lines.count('{"action":"C"}') == done // 20


@pytest.mark.pg15
def test_a_slot_that_is_past_the_file(stream: Database, rdsrepl: Program, tmp_path: Path) -> None:
    """Another consumer took what the file lacks; a truncated file; and the way out of both."""
    out = tmp_path / "out"
    stream.run("INSERT INTO t (v) VALUES ('a')")
    tail(rdsrepl, stream, out, "g", "--format", "wal2json")
    stream.run("INSERT INTO t (v) VALUES ('b')")
    with closing(stream.connect()) as conn:
        conn.execute("SELECT pg_replication_slot_advance('g', pg_current_wal_lsn())")
    stream.run("INSERT INTO t (v) VALUES ('c')")
    before, content = confirmed_lsn(stream, "g"), out.read_text()
    err = tail(rdsrepl, stream, out, "g", "--format", "wal2json", code=4)
    assert "were not delivered" in err and "--accept-gap" in err
    assert (confirmed_lsn(stream, "g"), out.read_text()) == (before, content)
    tail(rdsrepl, stream, out, "g", "--format", "wal2json", "--accept-gap")
    assert [text in out.read_text() for text in ('"a"', '"b"', '"c"')] == [True, False, True]
    os.truncate(out, 5)
    err = tail(rdsrepl, stream, out, "g", "--format", "wal2json", code=4)
    assert "it was truncated" in err and "hint: restore it, append to another file, or write" in err
    stream.run("INSERT INTO t (v) VALUES ('d')")
    tail(rdsrepl, stream, out, "g", "--format", "wal2json", "--at-least-once")
    assert '"d"' in out.read_text() and not positions_path(out).exists()
    with suppress(FileNotFoundError):
        out.unlink()
