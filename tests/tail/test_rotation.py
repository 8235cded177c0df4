"""Files that are closed and compressed: every crash leaves what the next run continues exactly."""

from __future__ import annotations

import gzip
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.errors import BadValue, SinkFailed
from rdsrepl.tail.options import Compression
from rdsrepl.tail.sinks import compression, position_file, recorded_file
from rdsrepl.tail.sinks.compression import SUFFIXES, Compressor, opener
from rdsrepl.tail.sinks.output_files import named_file, positions_path
from rdsrepl.tail.sinks.position_file import StreamSource
from rdsrepl.tail.sinks.recorded_file import RecordedFileSink
from rdsrepl.tail.sinks.rotation import Rotation, closed_files, closed_path
from rdsrepl.tail.timelines import Timelines
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

SOURCE = StreamSource("app", "g", "pgoutput", "json")
SYSTEM, FAR = "7000000000000000001", 1 << 40
FIRST = Timelines(1)

lsns = st.integers(min_value=1, max_value=(1 << 64) - 1)
timelines = st.integers(min_value=0, max_value=(1 << 32) - 1)


@given(one=st.tuples(timelines, lsns), two=st.tuples(timelines, lsns))
def test_the_order_of_names_is_the_order_of_positions(one: tuple[int, int], two: tuple[int, int]) -> None:
    path = Path("orders.jsonl")
    assert (one < two) == (closed_path(path, *one).name < closed_path(path, *two).name)


def test_names() -> None:
    lsn = 0x5F0C501098
    assert closed_path(Path("/d/orders.jsonl"), 1, lsn) == Path("/d/orders.00000001-0000005F-0C501098.jsonl")
    assert closed_path(Path("orders"), 0, lsn) == Path("orders.00000000-0000005F-0C501098")
    assert closed_path(Path(".a.b"), 0x1A, 1) == Path(".a.0000001A-00000000-00000001.b")


def test_when_a_file_is_closed() -> None:
    assert not Rotation(100, 10).is_due(0, 1000), "an empty file is not"
    assert Rotation(100).is_due(100, 0) and not Rotation(100).is_due(99, 1e9)
    assert Rotation(None, 10).is_due(1, 10) and not Rotation(None, 10).is_due(1, 9)


class Stream:
    """A server's stream: transaction N is a line, and ends at 100 N. Each run continues where the file ends."""

    def __init__(self, path: Path, transactions: int, rotation: Rotation) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._transactions = transactions
        self._rotation = rotation

    def open(self, path: Path | None = None, **given: Any) -> RecordedFileSink:
        return named_file(path or self.path, self._rotation, SOURCE, lambda fd: None, self.warnings.append, **given)

    def run(self, *, transactions: int | None = None) -> None:
        """Write everything from where the file ends."""
        sink = self.open()
        try:
            start = sink.resume_lsn(SYSTEM, FIRST, FAR, in_recovery=False)
            sink.connected(max(start, 50), SYSTEM, FIRST)
            first = max(start, 50) // 100 + 1
            last = 0
            for one in range(first, (transactions or self._transactions) + 1):
                line, last = f"{one}\n", last + 2
                sink.put(last - 1, [line[:1]])
                sink.put_until(last, [line[1:]], 100 * one)
            sink.finish()
            while sink.durable < last:
                time.sleep(0.001)
        finally:
            sink.close()

    def lines(self) -> list[int]:
        """Return the content of all files, in the order of the names."""
        closed = sorted(path for path in self.path.parent.iterdir() if re.search(r"\.0", path.name))
        read = [gzip.decompress(one.read_bytes()) if one.suffix == ".gz" else one.read_bytes() for one in closed]
        return [int(line) for line in b"".join([*read, self.path.read_bytes()]).split()]


def crash_at(number: int, do: Callable[[], None]) -> bool:
    """Run DO in a process that ends, as by kill -9, instead of its call NUMBER that changes a file; or to its end.

    Returns:
        Whether it came to its end.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    calls = count(1)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*words: Any, **options: Any) -> Any:
            if next(calls) == number:
                os._exit(9)
            return call(*words, **options)

        return changed

    for name in ("writev", "fsync", "fdatasync", "pwrite", "ftruncate", "rename", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    os.open = counted(os.open)
    try:
        do()
        os._exit(0)
    finally:
        os._exit(1)


def test_a_crash_at_any_step_of_a_rotation_changes_nothing(tmp_path: Path) -> None:
    """Each call that changes a file is the last one once; the next run then continues."""
    assert {compression.os, position_file.os, recorded_file.os} == {os}, "the calls are these modules'"
    for number in count(1):
        directory = tmp_path / str(number)
        directory.mkdir()
        stream = Stream(directory / "out", 3, Rotation(size=1))
        ended = crash_at(number, stream.run)
        stream.run()
        assert stream.lines() == [1, 2, 3], number
        if ended:
            break
    assert number > 40 and len(closed_files(stream.path)) == 3


def compress_all(path: Path) -> None:
    assert Compressor(path, Compression.gzip, print).finish(30)


def test_a_crash_at_any_step_of_a_compression_changes_nothing(tmp_path: Path) -> None:
    for number in count(1):
        directory = tmp_path / str(number)
        directory.mkdir()
        path = directory / "out.x"
        for lsn in (1, 2):
            closed_path(path, 1, lsn).write_bytes(b"%d\n" % lsn)

        compress = partial(compress_all, path)
        ended = crash_at(number, compress)
        compress()
        names = sorted(one.name for one in directory.iterdir())
        assert names == [f"out.00000001-00000000-0000000{lsn}.x.gz" for lsn in (1, 2)], number
        assert gzip.decompress((directory / names[0]).read_bytes()) == b"1\n"
        if ended:
            break
    assert number > 4


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_files_begin_where_the_one_before_ends(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "out.jsonl", 5, Rotation(size=4))
    stream.run(transactions=3)
    stream.run()
    assert [path.name for path in closed_files(stream.path)] == [
        "out.00000001-00000000-00000032.jsonl",
        "out.00000001-00000000-000000C8.jsonl",
    ]
    assert stream.lines() == [1, 2, 3, 4, 5]
    assert stream.path.read_text() == "5\n" and stream.warnings == []


def test_a_file_that_began_after_a_fork_has_the_new_timeline(tmp_path: Path, closing: ExitStack) -> None:
    """The old primary's file was closed past the fork; the next one must have a greater name."""
    stream = Stream(tmp_path / "out", 3, Rotation(size=1))
    stream.run()
    promoted = Timelines(2, ((1, 250),))
    sink = stream.open()
    closing.callback(sink.close)
    start = sink.resume_lsn(SYSTEM, promoted, FAR, in_recovery=False)
    assert start == 250
    sink.connected(start, SYSTEM, promoted)
    sink.put_until(1, ["4\n"], 280)
    wait_until(lambda: sink.durable == 1, "it is durable")
    assert closed_files(stream.path)[-1].name == "out.00000002-00000000-000000FA"
    assert stream.lines() == [1, 2, 3, 4]


def test_an_idle_file_is_closed_after_some_time(tmp_path: Path, closing: ExitStack) -> None:
    stream = Stream(tmp_path / "out", 1, Rotation(seconds=0.3))
    sink = stream.open()
    closing.callback(sink.close)
    sink.connected(50, SYSTEM, FIRST)
    sink.put(1, ["1\n"])
    wait_until(lambda: sink.durable == 1, "it is durable")
    assert closed_files(stream.path) == [], "within a transaction no file is closed"
    sink.put_until(2, [""], 100)
    wait_until(lambda: closed_files(stream.path), "it is closed")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_name_that_exists_ends_the_run(tmp_path: Path, suffix: str) -> None:
    stream = Stream(tmp_path / "out", 2, Rotation(size=1))
    taken = tmp_path / f"out.00000001-00000000-00000032{suffix}"
    taken.write_text("mine")
    with pytest.raises(SinkFailed, match=r"could not close .*out: out\.00000001-00000000-00000032 exists") as failed:
        stream.run()
    assert failed.value.hint is not None and "move that file" in failed.value.hint
    assert taken.read_text() == "mine"
    taken.unlink()
    stream.run()
    assert stream.lines() == [1, 2]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.rename(path.with_name("mine"))])
def test_a_file_that_is_removed_or_renamed_ends_the_run(
    tmp_path: Path, closing: ExitStack, change: Callable[[Path], object]
) -> None:
    """Otherwise changes would be confirmed that are lost with the file."""
    stream = Stream(tmp_path / "out", 1, Rotation())
    sink = stream.open()
    closing.callback(sink.close)
    sink.connected(50, SYSTEM, FIRST)
    change(stream.path)
    sink.put_until(1, ["1\n"], 100)
    with pytest.raises(SinkFailed, match="another program removed, renamed or replaced"):
        wait_until(lambda: sink.durable, "it fails")


def test_at_least_once_forgets_the_position(tmp_path: Path, closing: ExitStack) -> None:
    stream = Stream(tmp_path / "out", 2, Rotation())
    stream.run()
    sink = stream.open(starts_anew=True)
    closing.callback(sink.close)
    assert sink.resume_lsn(SYSTEM, FIRST, FAR, in_recovery=False) == 0
    assert stream.path.read_text() == "1\n2\n" and len(stream.warnings) == 1


@pytest.mark.parametrize("method", list(Compression))
def test_compression(tmp_path: Path, method: Compression) -> None:
    """Also what a crash left: both files, or a part of the compressed one."""
    if method is Compression.zstd:
        pytest.importorskip("backports.zstd")
    path, content = tmp_path / "out", os.urandom(3 << 20) + b"x" * (3 << 20)
    first, second = closed_path(path, 1, 1), closed_path(path, 1, 2)
    first.write_bytes(content)
    first.chmod(0o640)
    compressor = Compressor(path, method, print)
    wait_until(lambda: not first.exists(), "it is compressed")
    compressed = first.with_name(first.name + SUFFIXES[method])
    with compressed.open("rb") as file, opener(method)(file, "rb") as plain:
        assert plain.read() == content
    assert compressed.stat().st_mode & 0o777 == 0o640
    first.write_bytes(content)
    second.write_bytes(b"2")
    (tmp_path / f".{second.name}{SUFFIXES[method]}.tmp").write_bytes(b"part")
    compressor.request()
    assert compressor.finish(30)
    assert sorted(os.listdir(tmp_path)) == [f"{one.name}{SUFFIXES[method]}" for one in (first, second)]  # noqa: PTH208


def test_a_file_that_cannot_be_compressed_stays(tmp_path: Path) -> None:
    """A name that exists with other content; the other files are compressed all the same."""
    path, warnings = tmp_path / "out", []
    first, second = closed_path(path, 1, 1), closed_path(path, 1, 2)
    first.write_text("1")
    second.write_text("2")
    (tmp_path / f"{first.name}.gz").write_bytes(gzip.compress(b"other"))
    compressor = Compressor(path, Compression.gzip, warnings.append)
    compressor.request()
    assert compressor.finish(30)
    assert first.read_text() == "1" and not second.exists()
    assert len(warnings) == 1 and f"{first.name}.gz exists with other content; it stays" in warnings[0]


def test_a_damaged_compressed_file_does_not_end_the_compression(tmp_path: Path) -> None:
    """The library's own error is no OSError; a thread that ends with it would leave every later file as it is."""
    path, warnings = tmp_path / "out", []
    first, second = closed_path(path, 1, 1), closed_path(path, 1, 2)
    first.write_text("1")
    second.write_text("2")
    (tmp_path / f"{first.name}.gz").write_bytes(gzip.compress(b"1")[:10] + b"\xff" * 20)
    compressor = Compressor(path, Compression.gzip, warnings.append)
    assert compressor.finish(30)
    assert first.read_text() == "1" and not second.exists()
    assert len(warnings) == 1 and f"could not compress {first}: " in warnings[0]


def test_an_unexpected_error_of_the_writing_thread_ends_the_run(tmp_path: Path, closing: ExitStack) -> None:
    """Otherwise the tail would wait for its output without end, and the slot would retain WAL."""

    def fail() -> None:
        raise ValueError("unexpected")

    stream = Stream(tmp_path / "out", 1, Rotation(size=1))
    sink = stream.open(closed=fail)
    closing.callback(sink.close)
    sink.connected(50, SYSTEM, FIRST)
    sink.put_until(1, ["1\n"], 100)
    with pytest.raises(ValueError, match="unexpected"):
        wait_until(lambda: sink.durable > 1, "it fails")


def test_a_full_disk_while_compressing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; the stream goes on, and nothing is left over."""
    path = tmp_path / "out"
    closed = closed_path(path, 1, 1)
    closed.write_bytes(os.urandom(1 << 20))

    def compress() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        warnings: list[str] = []
        assert Compressor(path, Compression.gzip, warnings.append).finish(30)
        assert len(warnings) == 1 and "could not compress" in warnings[0]

    assert crash_at(0, compress)
    assert os.listdir(tmp_path) == [closed.name]  # noqa: PTH208


@pytest.mark.pg15
def test_rotating_files_of_a_slot(db15: Database, rdsrepl: Program, tmp_path: Path) -> None:
    db15.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
    )
    out = tmp_path / "orders.jsonl"
    words = ("--dsn", db15.dsn, "slot", "tail", "g", "--to", f"file:{out}", "--until-now")
    words = (*words, "--rotate-size", "1kB", "--rotate-compress", "gzip")
    for number in range(3):
        for _ in range(number):
            db15.run("INSERT INTO t (v) SELECT repeat('x', 100) FROM generate_series(1, 10)")
        result = rdsrepl(*words)
        assert result.code == 0, result.err
    closed = sorted(path for path in tmp_path.iterdir() if path.suffix == ".gz")
    content = b"".join(gzip.decompress(path.read_bytes()) for path in closed) + out.read_bytes()
    assert [int(found) for found in re.findall(rb'"after":{"id":(\d+)', content)] == list(range(1, 31))
    assert positions_path(out).exists() and 1 <= len(closed) <= 3
    first = re.search(rb'"commit_lsn":"([^"]+)"', gzip.decompress(closed[0].read_bytes()))
    assert first is not None
    high, low = first[1].split(b"/")
    assert closed[0].name.encode() <= b"orders.00000001-%s-%s.jsonl.gz" % (high.rjust(8, b"0"), low.rjust(8, b"0"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rotate-size", "1GiB"], "--rotate-size requires --to file:PATH"),
        (["--to", "file:/nowhere/out", "--rotate-every", "0"], "--rotate-every 0 is not positive"),
        (["--to", "file:out", "--rotate-compress", "gzip"], "--rotate-compress requires --rotate-size or"),
        (["--to", "file:/nowhere/out"], "the directory /nowhere does not exist"),
        (["--to", "file:/dev"], "--to /dev is a directory"),
        (["--to", "file:/dev/null"], "--to /dev/null is not a regular file"),
        (["--to", "file:out", "--no-confirm"], "--no-confirm is not supported with --to file:PATH"),
        (["--to", "file:"], "--to file: is not a sink"),
        (["--to", f"file:{'n' * 300}"], "cannot be used: File name too long"),
        (["--to", f"file:{'n' * 220}", "--rotate-size", "1MB"], "a name that is shorter by 1 byte"),
    ],
)
def test_options_that_do_not_fit(rdsrepl: Program, words: list[str], message: str) -> None:
    result = rdsrepl("--dsn", "host=127.0.0.1 port=1", "slot", "tail", "g", *words)
    assert result.code == 2 and message in result.err


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "backports.zstd", None)
    monkeypatch.setitem(__import__("sys").modules, "backports", None)
    with pytest.raises(BadValue, match=r"requires the package backports\.zstd") as missing:
        opener(Compression.zstd)
    assert missing.value.hint == "install it: pip install 'rdsrepl[zstd]'"
