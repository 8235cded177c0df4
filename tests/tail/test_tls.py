"""A stream over TLS: no message waits in OpenSSL's read-ahead, which the socket does not announce."""

from __future__ import annotations

import ctypes
import json
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rdsrepl.config import Target
from rdsrepl.errors import ConnectionLost, Error
from rdsrepl.tail.receiver import Receiver
from rdsrepl.tail.transport import Transport
from tests.fixtures.waiting import wait_until
from tests.workloads.tls import tls

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

# Around the sizes of a TLS record, of OpenSSL's buffer, and of libpq's.
SIZES = (1, 8_000, 16_300, 16_384, 16_500, 33_000, 50_000, 70_000, 600_000, 5, 5, 33_000, 5)
_SECONDS = 30


@pytest.fixture
def secure(db15: Database) -> Iterator[str]:
    """The connection string of a database with a slot, over TLS."""
    db15.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "ALTER TABLE t ALTER v SET STORAGE EXTERNAL",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
        "CREATE ROLE streamer LOGIN REPLICATION PASSWORD 'secret'",
        f'GRANT ALL ON DATABASE "{db15.name}" TO streamer',
    )
    with tls(db15.server):
        dsn = db15.server.dsn(user="streamer", dbname=db15.name) + " password=secret sslmode=require"
        wait_until(lambda: _connects(dsn), "the server accepts TLS")
        yield dsn


def _connects(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _next_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], _SECONDS)[0], "the change is not on stdout"
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


def test_a_single_change_does_not_wait_for_the_next_one(db15: Database, secure: str, rdsrepl: Program) -> None:
    """A change is read completely before the socket is waited for, whatever its size is.

    Otherwise nothing is read until the server's next message, and with a ``wal_sender_timeout`` of an hour none comes.
    """
    dsn = secure + " options='-c wal_sender_timeout=1h'"
    process = rdsrepl.start("-q", "slot", "tail", "g", "--publication", "p", dsn=dsn, stdout=subprocess.PIPE)
    for number, size in enumerate(SIZES, 1):
        db15.run(f"INSERT INTO t (v) VALUES (repeat('x', {size}))")
        line = _next_line(process)
        assert (line["after"]["id"], len(line["after"]["v"])) == (number, size)
    db15.run("INSERT INTO t (v) SELECT repeat('y', 2000) FROM generate_series(1, 5000)")
    assert process.stdout is not None
    for number in range(5000):  # several of them may be in the buffer of Python, which select does not see
        assert json.loads(process.stdout.readline())["after"]["id"] == len(SIZES) + 1 + number
    process.terminate()
    assert process.wait(_SECONDS) == 0


def test_the_end_of_a_stream(db15: Database, secure: str, rdsrepl: Program) -> None:
    """The server's answer comes behind messages that were read ahead; libpq then waits for the socket itself."""
    insert = "INSERT INTO t (v) SELECT repeat('x', 100) FROM generate_series(1, 20000)"
    db15.run(insert)
    ended = rdsrepl("-q", "slot", "tail", "g", "--publication", "p", "--until-now", dsn=secure)
    assert (ended.code, len(ended.lines)) == (0, 20_000), ended.err
    # The server ends this stream with an error at the first change after the publication was dropped.
    db15.run(insert, "DROP PUBLICATION p", insert, "CREATE PUBLICATION p FOR TABLE t")
    refused = rdsrepl("-q", "slot", "tail", "g", "--publication", "p", "--until-now", dsn=secure)
    assert refused.code != 0 and "publication" in refused.err, refused


def test_a_connection_that_is_lost(db15: Database, secure: str, rdsrepl: Program, tmp_path: Path) -> None:
    """libpq frees OpenSSL's object when the connection ends; it must not be used after that."""
    out = tmp_path / "out"
    with out.open("ab") as file:
        process = rdsrepl.start("-q", "slot", "tail", "g", "--publication", "p", dsn=secure, stdout=file)
    for number in range(1, 3):
        db15.run("INSERT INTO t (v) SELECT repeat('x', 500) FROM generate_series(1, 3000)")
        wait_until(lambda: db15.value("SELECT count(*) FROM pg_replication_slots WHERE active"), "it streams")
        db15.run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
        wait_until(lambda wanted=3_000 * number: _ids(out) >= set(range(1, wanted + 1)), "every change, after all")
    process.terminate()
    assert process.wait(_SECONDS) == 0


def test_libpq_has_closed_the_socket_before_the_next_read(db15: Database, secure: str) -> None:
    """The first read notices the loss and has messages before it; the next one must not use the socket's number."""
    receiver = Receiver(Target("test", secure), {})
    receiver.start("g", 0, {"proto_version": "1", "publication_names": "p"})
    db15.run("INSERT INTO t (v) SELECT repeat('x', 500) FROM generate_series(1, 300)")
    wait_until(receiver.read, "the first changes")
    db15.run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    with pytest.raises(psycopg.OperationalError):
        while True:
            receiver._pgconn.consume_input()
    assert receiver._transport is not None
    with pytest.raises(psycopg.OperationalError):
        receiver._transport.gather(1 << 20)
    with pytest.raises(ConnectionLost):
        receiver.wait(0.0, [])
    with pytest.raises(Error):
        while True:
            receiver.read()
    receiver.close(polite=True)


def _ids(path: Path) -> set[int]:
    return {json.loads(line)["after"]["id"] for line in path.read_bytes().split(b"\n")[:-1]}


def test_read_ahead_is_off_where_openssl_cannot_be_called(
    secure: str, db15: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_load(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    with psycopg.connect(secure) as encrypted, psycopg.connect(db15.dsn) as plain:
        assert Transport(encrypted.pgconn, is_unix=False).reads_ahead
        assert not Transport(plain.pgconn, is_unix=True).reads_ahead
        monkeypatch.setattr(ctypes, "CDLL", cannot_load)
        without = Transport(encrypted.pgconn, is_unix=False)
        assert not without.reads_ahead and not without.has_unread()
        without.stop_reading_ahead()
