"""Corners of the tail: a shutdown of the server under stalled output, odd names and options, descriptors, signals."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from rdsrepl.sandbox.servers import Server

if TYPE_CHECKING:
    from tests.conftest import Database, Program, Servers


@pytest.fixture(scope="module")
def own_server(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server to be restarted, that allows the output plugins that it allows by default."""
    programs = servers.get(15).binaries
    made = Server(tmp_path_factory.mktemp("edges") / "pg", programs, settings={"max_wal_senders": "20"})
    made.initdb()
    made.start()
    yield made
    made.stop("immediate")
    made.remove()


@pytest.fixture
def restarted(own_server: Server, make_database: Any) -> Database:
    database: Database = make_database(own_server)
    database.run(
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text)",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
    )
    return database


@pytest.mark.parametrize("rows", [1_000, 25_000], ids=["caught up", "sending"])
def test_a_stalled_reader_does_not_hold_a_fast_shutdown(restarted: Database, rdsrepl: Program, rows: int) -> None:
    """Whether all was sent and the server waits for its confirmation, or it waits to send more."""
    insert = "INSERT INTO t (v) SELECT repeat('x', 1000) FROM generate_series(1, {})"
    tail = rdsrepl.start(
        "slot", "tail", "g", "-f", "json", dsn=restarted.dsn, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert tail.stdout is not None
        restarted.run(insert.format(rows))
        lines = [tail.stdout.readline()]
        restarted.server.stop("fast")
        restarted.server.start()
        restarted.run(insert.format(1))
        while json.loads(lines[-1])["after"]["id"] <= rows:
            lines.append(tail.stdout.readline())
        tail.send_signal(signal.SIGINT)
        out, err = tail.communicate(timeout=60)
    finally:
        tail.kill()
        tail.communicate()
    assert (tail.returncode, out) == (0, b""), err
    # The transaction that was cut comes again, whole.
    assert list(dict.fromkeys(json.loads(line)["after"]["id"] for line in lines)) == list(range(1, rows + 2))
    assert b"the server is shutting down" in err
