"""A network that drops all packets is detected, wherever the tail waits for an answer."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.program import read_json_lines
from tests.fixtures.waiting import wait_until

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program

COPY_BOTH = b"W\0\0\0\x07"
SESSION = "connect_timeout=2 options='-c wal_sender_timeout=1500ms'"


class Proxy:
    """Forwards bytes in both directions, until it drops them: without an error, an end or a refusal.

    A connection on which bytes were swallowed stays dead.

    Attributes:
        drops: whether everything is swallowed from now on.
        swallow_at: a connection is dead from where a client sends these bytes on.
        seen: how many connections were dead because of that.
        mutes: whether each stream is dead from its beginning on: nothing comes behind the CopyBothResponse.
    """

    def __init__(self, stream: Database, host: str = "127.0.0.1") -> None:
        self.drops = False
        self.swallow_at: bytes | None = None
        self.seen = 0
        self.mutes = False
        place = stream.server.keywords()
        self._socket = f"{place['host']}/.s.PGSQL.{place['port']}"
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        dead = self.drops
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._socket)
            ends = [client, server]
            while client in ends:
                for source in select.select(ends, [], [])[0]:
                    data = source.recv(1 << 16)
                    if source is client and self.swallow_at is not None and self.swallow_at in data:
                        self.seen += 1
                        dead = True
                    dead = dead or self.drops
                    if self.mutes and source is server and (start := data.find(COPY_BOTH)) >= 0:
                        client.sendall(data[: start + 8])
                        dead = True
                    if not data:
                        ends = [client] if dead and source is server else []
                    elif not dead:
                        (server if source is client else client).sendall(data)


@pytest.fixture
def stream(db18: Database) -> Database:
    """A table with an array of a type that must be looked up, its publication, and a slot."""
    db18.run(
        "CREATE TYPE colour AS ENUM ('red')",
        "CREATE TABLE t (id bigserial PRIMARY KEY, v text, c colour[])",
        "CREATE PUBLICATION p FOR TABLE t",
        "SELECT pg_create_logical_replication_slot('g', 'pgoutput')",
    )
    return db18


@pytest.fixture
def proxy(stream: Database) -> Iterator[Proxy]:
    made = Proxy(stream)
    yield made
    made.close()


def through(stream: Database, port: int, host: str = "127.0.0.1") -> str:
    user = stream.server.keywords()["user"]
    return f"host={host} port={port} user={user} dbname={stream.name} sslmode=disable {SESSION}"


def insert(stream: Database, value: str = "NULL") -> None:
    stream.run(f"INSERT INTO t (v, c) SELECT 'x', {value} FROM generate_series(1, 100)")


@contextmanager
def namespace() -> Iterator[tuple[Callable[[str], None], str, list[str]]]:
    """Another network behind a link: yields the link's switch, our address, and the command prefix to run there."""
    name = f"r{uuid.uuid4().hex[:8]}"
    ip = shutil.which("ip") or "/usr/sbin/ip"

    def run(*words: str) -> None:
        subprocess.run([ip, *words], check=True, capture_output=True)

    here, there = "198.18.77.1", "198.18.77.2"  # RFC 2544: for tests between two networks
    run("netns", "add", name)
    try:
        run("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
        run("addr", "add", f"{here}/30", "dev", name)
        run("link", "set", name, "up")
        run("-n", name, "addr", "add", f"{there}/30", "dev", "far")
        run("-n", name, "link", "set", "far", "up")
        yield lambda state: run("link", "set", name, state), here, [ip, "netns", "exec", name]
    finally:
        run("netns", "del", name)


def namespaces() -> bool:
    """Return whether this user may create networks."""
    if os.geteuid() != 0 or not (ip := shutil.which("ip") or shutil.which("ip", path="/usr/sbin")):
        return False
    name = f"r{uuid.uuid4().hex[:8]}"
    made = subprocess.run([ip, "netns", "add", name], capture_output=True, check=False).returncode == 0
    return made and subprocess.run([ip, "netns", "del", name], capture_output=True, check=False).returncode == 0


def check_outage(
    stream: Database, rdsrepl: Program, tmp_path: Path, dsn: str, cut: Callable[[bool], None], inside: list[str]
) -> None:
    out, err = tmp_path / "out.jsonl", tmp_path / "err"
    words = [*inside, *rdsrepl.command, "--dsn", dsn, "slot", "tail", "g", "-f", "json"]
    with out.open("wb") as file, err.open("wb") as talk:
        tail = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=talk, env=rdsrepl.env)
        try:
            insert(stream)
            wait_until(lambda: len(out.read_bytes().splitlines()) == 100, "the changes before the outage")
            cut(True)
            insert(stream)
            wait_until(lambda: "connecting again" in err.read_text(), "the dead connection is detected")
            cut(False)
            wait_until(lambda: len(out.read_bytes().splitlines()) == 200, "the changes of the outage")
            tail.send_signal(signal.SIGINT)
            assert tail.wait(timeout=120) == 0, err.read_text()
        finally:
            tail.kill()
            tail.wait()
    assert "the server was silent for" in err.read_text()
    assert [event["after"]["id"] for event in read_json_lines(out)] == list(range(1, 201))


def test_a_proxy_that_drops_everything(stream: Database, proxy: Proxy, rdsrepl: Program, tmp_path: Path) -> None:
    def cut(is_cut: bool) -> None:
        proxy.drops = is_cut

    check_outage(stream, rdsrepl, tmp_path, through(stream, proxy.port), cut, [])


@pytest.mark.skipif(not namespaces(), reason="needs the right to make network namespaces (root), and iproute2")
def test_a_link_that_is_down(stream: Database, rdsrepl: Program, tmp_path: Path) -> None:
    with namespace() as (link, host, inside):
        proxy = Proxy(stream, host)
        try:
            dsn = through(stream, proxy.port, host)
            check_outage(stream, rdsrepl, tmp_path, dsn, lambda is_cut: link("down" if is_cut else "up"), inside)
        finally:
            proxy.close()


def test_every_wait_for_an_answer_times_out(stream: Database, proxy: Proxy, rdsrepl: Program, tmp_path: Path) -> None:
    dsn = through(stream, proxy.port)
    words = ("slot", "tail", "g", "-f", "json", "--receive-timeout", "500ms", "--until-now", "-o", "json")
    proxy.drops = True  # while the connection is opened
    result = rdsrepl(*words, dsn=dsn)
    assert (result.code, result.error["error"]) == (5, "unreachable"), result.err
    proxy.drops = False
    for at in (b"pg_replication_slots", b"IDENTIFY_SYSTEM", b"START_REPLICATION"):
        proxy.swallow_at = at
        result = rdsrepl(*words, dsn=dsn)
        assert (result.code, result.error["error"]) == (5, "connection_lost"), result.err
        assert "did not answer within 0.5s" in result.error["message"]
    # The catalogue is queried during the stream: its connection and the stream are opened again.
    proxy.swallow_at, before = b"pg_type", proxy.seen
    insert(stream, "ARRAY['red']::colour[]")
    out, err = tmp_path / "out.jsonl", tmp_path / "err"
    with out.open("wb") as file, err.open("wb") as talk:
        # The server has more time here, because no answer may be late except the one that is swallowed.
        words = tuple(word.replace("500ms", "2s") for word in words)
        tail = rdsrepl.start(*words, dsn=dsn, stdout=file, stderr=talk)
        wait_until(lambda: proxy.seen > before, "the catalogue is queried")
        proxy.swallow_at = None
        assert tail.wait(timeout=120) == 0, err.read_text()
    assert [event["after"]["id"] for event in read_json_lines(out)] == list(range(1, 101))
    assert read_json_lines(out)[0]["after"]["c"] == ["red"]


def test_a_stream_that_never_brings_a_change_ends(stream: Database, proxy: Proxy, rdsrepl: Program) -> None:
    """Like a server that decodes one change for longer than its timeout: reconnecting must end."""
    insert(stream)
    proxy.mutes = True
    words = ("slot", "tail", "g", "-f", "json", "--receive-timeout", "1s", "--until-now", "-o", "json")
    result = rdsrepl(*words, dsn=through(stream, proxy.port))
    assert (result.code, result.error["error"]) == (1, "timed_out"), result.err
    assert result.out == ""
