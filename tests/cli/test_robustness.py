"""Damaged files, stopped processes, silent clients, endless input: the program reports them and goes on."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from rdsrepl import errors
from rdsrepl.lsn import Lsn
from rdsrepl.runbooks import journal
from rdsrepl.state import audit, json_lines, slot_history
from rdsrepl.state.slot_history import Observation, SlotObservation
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.service import base_url, health, scrape, tailing

# State files.

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DEEP = "[" * 200_000


def look(minutes: int, *slots: SlotObservation) -> Observation:
    return Observation(NOW + timedelta(minutes=minutes), NOW, 1, Lsn(4096 + minutes), 700 + minutes, slots)


SLOT = SlotObservation("orders", True, Lsn(100), Lsn(200), 7, "psql on 10.0.0.1", (1, 2, 3, 4, 5, 6, 7, 4096, None))


def damaged(line: str) -> list[bytes]:
    """Return damaged versions of a line of the history."""
    row = json.loads(line)
    columns: list[Any] = row["slots"][0]

    def with_(**fields: Any) -> bytes:
        return json.dumps({**row, **fields}).encode()

    def slot(number: int, value: Any) -> bytes:
        return with_(slots=[[*columns[:number], value, *columns[number + 1 :]]])

    whole = line.encode()
    return [
        whole[: len(whole) // 2],
        whole[len(whole) // 2 :],
        whole.replace(b'"', b"'"),
        b"\0" * 4096,
        whole[:20] + b"\0" + whole[20:],
        whole.replace(b"orders", b"or\xff\xfeders"),
        whole.replace(b"orders", b"\xed\xa0\x80"),
        DEEP.encode(),
        whole.replace(b'"slots":[', b'"slots":' + DEEP.encode()),
        (b'{"a":' * 100_000),
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b"NaN",
        with_(lsn=None),
        with_(lsn=7),
        with_(lsn="no LSN"),
        with_(at=None),
        with_(at="2026-11-21T12:00:00"),
        with_(at="0001-01-01T00:00:00+14:00"),
        with_(at="9999-12-31T23:59:59-14:00"),
        with_(at="2026-99-99T00:00:00+00:00"),
        with_(started_at="2026-11-21T12:00:00"),
        with_(started_at=1.5),
        with_(next_xid="many"),
        with_(next_xid=10**400),
        whole.replace(b'"next_xid":', b'"next_xid":' + b"9" * 5000),
        whole.replace(b'"next_xid":', b'"next_xid":1e999,"x":'),
        whole.replace(b'"next_xid":', b'"next_xid":NaN,"x":'),
        whole.replace(b'"next_xid":', b'"next_xid":-Infinity,"x":'),
        with_(next_xid=True),
        with_(timeline="one"),
        with_(timeline=[]),
        with_(slots=None),
        with_(slots={}),
        with_(slots=[None]),
        with_(slots=[[]]),
        with_(slots=[columns[:-1]]),
        with_(slots=["1234567"]),
        slot(0, []),
        slot(0, {}),
        slot(0, None),
        slot(1, "yes"),
        slot(2, "XYZ"),
        slot(2, 7),
        slot(3, ["0/1"]),
        slot(4, "old"),
        slot(4, 1e300),
        slot(5, 7),
        slot(6, "1 GB"),
        slot(6, 10**100),
        whole[:-1] + b',"at":"2026-11-21T12:00:00+00:00"}',
        b"\xef\xbb\xbf" + whole,
        line.encode("utf-16"),
    ]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory for this test, for calls in this process."""
    monkeypatch.setenv("RDSREPL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def history_file(directory: Path) -> Path:
    (path,) = (directory / "observations").glob("*.jsonl")
    return path


@contextmanager
def stopped_holder(path: Path) -> Iterator[int]:
    """Lock a file from a process that is stopped."""
    script = (
        "import fcntl, os, signal, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script + "; os.kill(os.getpid(), signal.SIGSTOP)", str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_only_the_damaged_line_is_lost(state: Path) -> None:
    assert slot_history.record("s", look(0, SLOT)) and slot_history.record("s", look(1, SLOT))
    path = history_file(state)
    first, second = path.read_bytes().splitlines(keepends=True)
    kinds = damaged(first.decode().rstrip())
    for line in kinds:
        path.write_bytes(first + line + b"\n" + second)
        assert slot_history.history("s") == (look(0, SLOT), look(1, SLOT)), line[:200]
    path.write_bytes(b"\n".join([first, *kinds, second]) + kinds[0])
    assert slot_history.record("s", look(2)), "the previous line was cut short"
    assert slot_history.history("s") == (look(0, SLOT), look(1, SLOT), look(2))


def test_no_slot_command_fails_because_of_its_state_files(rdsrepl: Program, db18: Database) -> None:
    db18.run(f"SELECT pg_create_logical_replication_slot('{db18.name}', 'pgoutput')")
    commands = (
        ("slot", "check"),
        ("slot", "lag"),
        ("slot", "list"),
        ("slot", "prune", "--dry-run", "--inactive-for", "1d"),
    )

    def outcomes(*wanted: tuple[str, ...]) -> None:
        for words in wanted or commands:
            done = rdsrepl(*words, dsn=db18.dsn)
            assert done.code in (0, 8, 9), (words, done.code, done.err)

    outcomes()
    path = history_file(rdsrepl.home / "state" / "rdsrepl")
    line = path.read_bytes().splitlines()[-1].decode()
    path.write_bytes(b"\n".join([*damaged(line), line.encode()]) + b"\n")
    outcomes()
    with path.open("ab") as file:
        file.truncate(1 << 30)  # a sparse gigabyte of NUL bytes
    outcomes()
    assert path.stat().st_size < 3 << 20, "the next sample shortens the file"
    with stopped_holder(path):
        outcomes(("slot", "check"))
    path.unlink()
    os.mkfifo(path)
    outcomes()
    path.unlink()
    path.symlink_to("/dev/zero")
    outcomes()
    path.unlink()
    path.mkdir()
    outcomes()


def test_a_history_that_other_users_can_write_is_not_used(state: Path) -> None:
    assert slot_history.record("s", look(0, SLOT))
    path = history_file(state)
    path.chmod(0o666)
    assert slot_history.history("s") == ()
    path.chmod(0o600)
    assert slot_history.history("s") == (look(0, SLOT),)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        assert slot_history.history("s") == ()


def test_a_history_is_replaced_atomically_while_other_processes_wait(state: Path) -> None:
    """The new file is complete, and a process that waited for the lock of the old file writes to the new one."""
    path = state / "many.jsonl"
    for number in range(50):
        json_lines.append(path, {"n": number})
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        script = (
            "import sys; from pathlib import Path; from rdsrepl.state import json_lines\n"
            "print(flush=True); json_lines.append(Path(sys.argv[1]), {'n': 'late'}, lock_seconds=60)"
        )
        with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as waiting:
            assert waiting.stdout is not None
            waiting.stdout.readline()
            json_lines.replace_file(path, b'{"n": "kept"}\n')
            fcntl.flock(held, fcntl.LOCK_UN)
            assert waiting.wait(120) == 0
    assert [row and row["n"] for row in json_lines.rows(path, 1 << 20)] == ["kept", "late"]
    json_lines.append(path, {"n": "more"}, max_bytes=10, thin=lambda lines: lines[-1:])
    assert [row and row["n"] for row in json_lines.rows(path, 1 << 20)] == ["late", "more"]
    assert [entry.name for entry in state.iterdir()] == ["many.jsonl"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_audit_trail_reports_why_it_could_not_be_written(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines.append, "__kwdefaults__", {**json_lines.append.__kwdefaults__, "lock_seconds": 0.1})
    audit.append({"n": 1, "client": "caf\udce9"})  # a name that is not UTF-8
    with stopped_holder(audit.audit_file()) as pid, pytest.raises(errors.Refused, match="has held its lock") as refused:
        audit.append({"n": 2})
    assert f"(pid {pid})" in refused.value.message and "kill -CONT" in str(refused.value.hint)
    assert [json.loads(line)["n"] for line in audit.audit_file().read_text().splitlines()] == [1]
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/full")):
        audit.audit_file().unlink(missing_ok=True)
        make(audit.audit_file())
        with pytest.raises(errors.Refused, match=r"not a regular file|Is a directory"):
            audit.append({"n": 3})
        (audit.audit_file().rmdir if audit.audit_file().is_dir() else audit.audit_file().unlink)()


def test_a_full_disk_and_a_read_only_file_system(state: Path) -> None:
    """Neither leaves part of a line; the history is kept when it cannot be shortened."""
    script = """
import os, resource, sys
from pathlib import Path
from rdsrepl.state import json_lines
path = Path(sys.argv[1])
json_lines.append(path, {"n": 1, "pad": "x" * 4000})
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
for bound in (None, 10):
    try:
        json_lines.append(path, {"n": 2, "pad": "y" * 5000}, max_bytes=bound, thin=lambda lines: lines)
    except OSError as exc:
        print(exc.strerror)
assert path.stat().st_size == size and [entry.name for entry in path.parent.iterdir()] == [path.name]
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(state / "f.jsonl")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["No space left on device"] * 2
    # Not by the mode of the directory, which does not apply to root.
    with pytest.raises(OSError, match=r"denied|Read-only|Operation not permitted|No such file"):
        json_lines.append(Path("/proc/sys/x.jsonl"), {})


def test_json_is_read_strictly() -> None:
    for text in ("[1e999]", "[-1e999]", "[NaN]", "[Infinity]", '{"a":1,"a":1}', DEEP, '{"a":' * 10**5, "9" * 5000, ""):
        with pytest.raises(json_lines.Damaged):
            json_lines.parse(text)
        with pytest.raises(json_lines.Damaged):
            json_lines.parse(text.encode())
    assert json_lines.parse(b'{"a":[1,1.5e10,null,true,"\\u00e9\xc3\xa9"]}') == {"a": [1, 1.5e10, None, True, "éé"]}


STEPS = ("a", "b", "c")


def journal_of(state: Path, *, without: tuple[int, ...] = (), garbage: bytes = b"\0\0{", events: int = 7) -> None:
    """Write the journal of a run that was killed in its third step, with damaged lines."""
    for path in journal.directory().glob("*"):
        path.unlink()
    book = journal.Journal("book")
    book.write(
        "begin", runbook="book", digest="d", where={}, variables={"v": "1\u2028\x85\x1c2"}, settled={}, changed=False
    )
    for step in STEPS:
        book.write("step_begin", step=step)
        if step != "c":
            book.write("step_end", step=step, status="done", changed=False)
    assert book.failed is None
    lines = book.path.read_bytes().split(b"\n")[:-1][:events]
    book.path.write_bytes(b"".join((garbage if n in without else line) + b"\n" for n, line in enumerate(lines)))


def test_a_damaged_line_of_a_journal_repeats_no_step(state: Path) -> None:
    def past(**how: Any) -> journal.EarlierRun:
        journal_of(state, **how)
        found = journal.last_run("book", {})
        assert found is not None
        return found

    whole = past()
    assert (dict(whole.completed), whole.stopped_at, whole.unknown) == ({"a": "done", "b": "done"}, "c", True)
    assert whole.variables == {"v": "1\u2028\x85\x1c2"}
    for garbage in (b"", b"{}", b"7", b'{"event":[]}', b'{"event":"step_end","step":[]}', DEEP.encode(), b"\xff"):
        for number in (1, 2, 3, 4):  # the start or end of a step: the following line proves it as well
            found = past(without=(number,), garbage=garbage)
            assert set(found.completed) == {"a", "b"} and (found.stopped_at, found.unknown) == ("c", True)
    last = past(without=(5,))  # whether the third step was started
    assert set(last.completed) == {"a", "b"} and last.stopped_at is None and last.unknown
    assert past(without=(4,), events=5).unknown
    journal_of(state, without=(0,))
    with pytest.raises(errors.Refused, match="is damaged"):
        journal.last_run("book", {})
    journal_of(state, without=(0,), events=1)  # killed in the first line: no step was started
    assert journal.last_run("book", {}) is None
    (path,) = journal.directory().iterdir()
    path.unlink()
    os.mkfifo(path)
    assert journal.last_run("book", {}) is None


# The port of the metrics.


def test_silent_slow_and_large_clients_do_not_block_metrics_or_exit(rdsrepl: Program, db18: Database) -> None:
    db18.run("CREATE PUBLICATION p FOR ALL TABLES")
    db18.run(f"SELECT pg_create_logical_replication_slot('{db18.name}', 'pgoutput')")
    line = ("slot", "tail", db18.name, "--metrics-port", "0")
    with tailing(rdsrepl, *line, dsn=db18.dsn) as (process, log), ExitStack() as clients:
        url = base_url(log)
        port = int(url.rpartition(":")[2])

        def client(request: bytes) -> socket.socket:
            made = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            made.sendall(request)
            return made

        silent = [client(b"") for _ in range(100)]
        trickling = client(b"GET /met")
        greedy = client(b"GET /metrics HTTP/1.0\r\n\r\n")  # does not read its answer
        with suppress(ConnectionError):
            client(b"GET /" + b"x" * 3_000_000)
        with suppress(ConnectionError):
            client(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300_000)
        client(b"\0\xff\r\n\r\n")
        assert health(url)[0] == 200 and scrape(url)["healthy"] == 1
        assert silent[0].recv(1) == b"", "the oldest of too many connections are closed"
        large = client(b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 70_000)
        assert large.recv(16).startswith(b"HTTP/1.0 431")
        process.terminate()
        assert process.wait(120) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert trickling.fileno() >= 0 and greedy.fileno() >= 0, "they are still open"


# Malformed messages: from the socket to the position of the slot.


class Damaging:
    """A proxy to a server that damages the XLogData message with certain bytes."""

    def __init__(self, upstream: str, marked: bytes, damage: Callable[[bytes], bytes]) -> None:
        self._upstream = upstream
        self._marked = marked
        self._damage = damage
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._upstream)
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        """Forward each message: a type byte, a length that includes itself, and the body."""
        with closing(server), closing(client), suppress(OSError), server.makefile("rb") as stream:
            while head := stream.read(5):
                body = stream.read(int.from_bytes(head[1:]) - 4)
                if head[:1] == b"d" and self._marked in body:
                    body = self._damage(body)
                client.sendall(head[:1] + (len(body) + 4).to_bytes(4) + body)


def cut(body: bytes) -> bytes:
    return body[:-3]


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "a tuple that is cut": ("json", cut, "public.t"),
    "no message of the replication protocol": (
        "json",
        lambda body: b"x" + body[1:],
        "neither XLogData nor a keepalive",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_nothing_is_confirmed_past_a_malformed_message(rdsrepl: Program, db18: Database, kind: str) -> None:
    fmt, damage, expected = DAMAGES[kind]
    db18.run("CREATE TABLE t (id int PRIMARY KEY, v text)", "CREATE PUBLICATION p FOR ALL TABLES")
    db18.run(f"SELECT pg_create_logical_replication_slot('{db18.name}', 'pgoutput')")
    db18.run("INSERT INTO t VALUES (1, 'good')")
    before = db18.value("SELECT pg_current_wal_insert_lsn()::text")
    db18.run("INSERT INTO t VALUES (2, 'po' || 'ison')", "INSERT INTO t VALUES (3, 'behind')")
    keywords = db18.server.keywords(dbname=db18.name)
    between = Damaging(f"{keywords['host']}/.s.PGSQL.{keywords['port']}", b"poison", damage)
    dsn = make_conninfo(db18.dsn, host="127.0.0.1", port=between.port, sslmode="disable")
    try:
        done = rdsrepl("slot", "tail", db18.name, "--format", fmt, dsn=dsn)
        assert done.code == 1 and expected in done.err and "Traceback" not in done.err, done.err
        assert "good" in done.out and "poison" not in done.out and "behind" not in done.out
    finally:
        between.close()
    state = f"FROM pg_replication_slots WHERE slot_name = '{db18.name}'"
    assert db18.value(f"SELECT confirmed_flush_lsn <= '{before}' {state}"), "no position after it is confirmed"
    assert db18.value(f"SELECT confirmed_flush_lsn > '{before}'::pg_lsn - 400 {state}"), (
        "everything before it is confirmed"
    )
    done = rdsrepl("slot", "tail", db18.name, "--format", "json", "--until-now", dsn=db18.dsn)
    assert done.code == 0 and [row["after"]["v"] for row in done.lines] == ["poison", "behind"], done.err


# Deeply nested, repeated and endless texts.


def test_deep_and_repeated_yaml_is_refused_or_limited(rdsrepl: Program, tmp_path: Path) -> None:
    config = rdsrepl.home / "config" / "rdsrepl" / "config.yaml"
    config.parent.mkdir(parents=True)
    bomb = "a: &a [x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefgh")
    )
    texts = {
        "[" * 5000: "nested too deep",
        "targets: " + "{a: " * 5000: "nested too deep",
        "- " * 5000: "nested too deep",
        bomb: "unknown key 'a'",
        "targets:\n  t: &t\n    host: *t\n": "must be a single value",
        'targets: {t: {host: "\\UFFFFFFFF"}}': "out of range",
        "#" * 300_000: "characters",
        "targets: {t: {host: h}}\n'current': x": "target 'x' does not exist",
        "{current: x}": "target 'x' does not exist",
    }
    for text, expected in texts.items():
        config.write_text(text)
        done = rdsrepl("config", "show")
        assert done.code == 2 and expected in done.err, (text[:80], done.err)
        page = tmp_path / "page.md"
        page.write_text(f"---\nwhen: now\nvariables: {text}\n---\n# Title\n")
        config.unlink()
        done = rdsrepl("runbook", "show", str(page))
        assert done.code == 2 and str(page) in done.err, (text[:80], done.err)


@pytest.mark.parametrize("moment", ["import typer", "build the command line"])
def test_ctrl_c_while_the_program_starts_prints_nothing(tmp_path: Path, moment: str) -> None:
    interrupt = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"
    start = "import sys; sys.argv[:] = ['rdsrepl', 'slot', 'list']; from rdsrepl.__main__ import run; run()"
    if moment == "import typer":
        (tmp_path / "typer.py").write_text(
            f"try:\n    {interrupt}    pass\nexcept BaseException as exc:\n    print(exc)\n"
        )
    else:
        start = f"import typer.main; typer.main.get_command = lambda *_: exec({interrupt!r}); {start}"
    done = subprocess.run(
        [sys.executable, "-c", start],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
