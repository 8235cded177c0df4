"""The sandbox on real servers: start and removal, the state after a crash, what is as on RDS, and the relay."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from rdsrepl import config
from rdsrepl.config import edit
from rdsrepl.errors import Error, NotFound, Refused
from rdsrepl.sandbox import lifecycle, relay, server_registry
from rdsrepl.sandbox.directory import SandboxDirectory, StateReader, directory
from rdsrepl.sandbox.report import Report
from rdsrepl.sandbox.servers import binaries, postgres_server, processes
from rdsrepl.sandbox.servers.binaries import Binaries
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from rdsrepl.sandbox.state import EndpointState, State

ALL = sorted([*binaries.installed(), *binaries.from_wheel()], key=lambda found: found.version)
EACH_VERSION = [pytest.param(found, id=f"pg{found.major}") for found in {b.major: b for b in ALL}.values()]
NEWEST = ALL[-1]
PASSWORD = "open sesame"
WRITER, READER = "servers/sandbox-instance-1", "servers/sandbox-instance-2"


def isolate(patch: pytest.MonkeyPatch, tmp: Path) -> None:
    """Use temporary directories, and ignore variables that point to other servers."""
    for name in [name for name in os.environ if name.startswith(("PG", "RDSREPL_", "AWS_"))]:
        patch.delenv(name)
    patch.setenv("XDG_CONFIG_HOME", str(tmp / "config"))
    patch.setenv("XDG_STATE_HOME", str(tmp / "state"))
    patch.setenv("RDSREPL_SANDBOX_DIR", str(tmp / "sandbox"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for a sandbox, which is removed after the test."""
    isolate(monkeypatch, tmp_path)
    yield tmp_path / "sandbox"
    lifecycle.down()


@dataclass(frozen=True)
class Running:
    """A sandbox for all tests that do not change it."""

    report: Report
    programs: Binaries

    def connect(self, user: str | None = None, *, port: int | None = None, **more: Any) -> psycopg.Connection[Any]:
        secret = {"password": PASSWORD} if user else {"passfile": self.report.passfile}
        return psycopg.connect(
            host=self.report.host,
            port=port or self.report.port,
            user=user or self.report.user,
            autocommit=True,
            connect_timeout=60,
            **{"dbname": self.report.dbname, **secret, **more},
        )

    def role(self, *memberships: str) -> str:
        name = f"r_{uuid.uuid4().hex[:12]}"
        with self.connect() as conn:
            conn.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(PASSWORD))
            )
            for membership in memberships:
                conn.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(membership), sql.Identifier(name)))
            self.replayed(value(conn, "SELECT pg_current_wal_lsn()::text"))
        return name

    def replayed(self, lsn: str) -> None:
        """Wait until the standby has replayed the WAL up to LSN."""
        if self.report.reader_port is not None:
            with self.connect(port=self.report.reader_port) as reader:
                query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
                assert processes.wait(lambda: bool(value(reader, query, lsn)), 120.0)

    def rolreplication(self, name: str) -> bool:
        with self.connect() as conn:
            return bool(value(conn, "SELECT rolreplication FROM pg_roles WHERE rolname = %s", name))


def value(conn: psycopg.Connection[Any], query: str, *parameters: object) -> Any:
    row = conn.execute(query, parameters or None).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture(scope="module", params=EACH_VERSION)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, tmp_path_factory.mktemp("lab"))
        try:
            yield Running(lifecycle.up(bin_dir=request.param.bin_dir), request.param)
        finally:
            lifecycle.down()


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rdsrepl", *words], capture_output=True, text=True, timeout=120)


def leftovers(home: Path, report: Report) -> list[str]:
    """Return what remains of a sandbox: processes, files, its target."""
    left = [
        f"pid {left.pid}" for server in report.servers for left in processes.orphaned_processes(Path(server.data_dir))
    ]
    for name, pid in (("endpoint", report.endpoint_pid), ("API", report.api_pid)):
        if pid is not None and str(home) in processes.command_line(pid):
            left.append(name)
    left += [str(path) for path in (home, config.config_path().parent) if path.exists()]
    return left


def kill_all(report: Report) -> None:
    # The API first, because it restarts servers.
    servers = (server.pid for server in report.servers)
    pids = [pid for pid in (report.api_pid, report.endpoint_pid, *servers) if pid is not None]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:  # a process needs some time to end
        assert processes.wait(lambda pid=pid: processes.start_time(pid) is None, 120.0)


# --- start and removal, by the command line


def test_up_status_env_and_down(home: Path) -> None:
    none = cli("sandbox", "status", "-o", "json")
    assert none.returncode == 3 and none.stdout == ""
    assert json.loads(none.stderr)["error"] == "not_found"
    assert cli("sandbox", "env").returncode == 3

    up = cli("sandbox", "up", "-o", "json")
    assert up.returncode == 0, up.stderr
    made = json.loads(up.stdout)
    assert made["state"] == "running" and made["directory"] == str(home)
    assert [(s["role"], s["running"], s["in_recovery"]) for s in made["servers"]] == [
        ("writer", True, False),
        ("reader", True, True),
    ]
    assert "creating the writer" in up.stderr

    again = json.loads(cli("sandbox", "up", "-o", "json").stdout)
    for document in (made, again):
        for server in document["servers"]:
            del server["streaming"], server["replay_lag_bytes"]
    assert again == made

    status = cli("sandbox", "status")
    assert status.returncode == 0 and "primary" in status.stdout and "standby" in status.stdout

    shell = f'eval "$({sys.executable} -m rdsrepl sandbox env)"; env'
    environment = {**os.environ, "PGPASSWORD": "wrong", "PGHOSTADDR": "192.0.2.1", "AWS_SESSION_TOKEN": "x"}
    printed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=environment).stdout.splitlines()
    variables = dict(line.partition("=")[::2] for line in printed if line.startswith(("PG", "AWS_")))
    assert variables == {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(made["port"]),
        "PGUSER": "dbadmin",
        "PGDATABASE": "app",
        "PGPASSFILE": str(home / "pgpass"),
        "PGREQUIREAUTH": "scram-sha-256",
        "AWS_PROFILE": "sandbox",
        "AWS_CONFIG_FILE": str(home / "aws" / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "aws" / "credentials"),
        "AWS_ENDPOINT_URL": made["endpoint_url"],
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    target = config.load().get("sandbox")
    with psycopg.connect(**target.keywords) as conn:  # type: ignore[arg-type]
        assert value(conn, "SELECT current_user") == "dbadmin"
    assert (home / "pgpass").stat().st_mode & 0o777 == 0o600
    assert (home / "state.json").stat().st_mode & 0o777 == 0o600

    report = lifecycle.status()
    assert report is not None
    down = cli("sandbox", "down")
    assert (down.returncode, down.stdout.strip()) == (0, "the sandbox was removed")
    assert leftovers(home, report) == []
    nothing = cli("sandbox", "down")
    assert nothing.returncode == 0 and "nothing to do" in nothing.stdout


def test_a_state_that_is_replaced_twice_in_a_moment_is_read_again(tmp_path: Path) -> None:
    """The file then can have the same inode and time as before, on ext4 of Linux before 6.13."""
    tmp_path.chmod(0o700)
    place = SandboxDirectory(tmp_path)
    reader = StateReader(place)
    assert reader.read() is None
    ports = []
    for port in (1, 2):
        empty = State("ready", "/bin", (16,), "/sockets", "boss", "app", "/config", True)
        file = place.state_file
        before = file.stat() if file.exists() else None
        place.write(empty.with_endpoints(EndpointState("writer", "orders", port)))
        if before is not None:
            text = file.read_bytes()
            (tmp_path / "kept").rename(file)
            file.write_bytes(text)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            after = file.stat()
            assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        os.link(file, tmp_path / "kept")  # the inode stays
        state = reader.read()
        assert state is not None
        ports.append(state.port("writer", "orders"))
    assert ports == [1, 2]


def test_writer_only(home: Path) -> None:
    report = lifecycle.up(standby=False)
    assert report.state == "running" and report.reader_port is None and len(report.servers) == 1
    assert lifecycle.down().was_there
    assert leftovers(home, report) == []


def test_variables_for_another_server_are_ignored(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "PGHOST": "192.0.2.1",
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGUSER": "another",
        "PGDATABASE": "nothing",
        "PGOPTIONS": "-c nope=1",
        "PGSSLMODE": "require",
        "PGTARGETSESSIONATTRS": "standby",
    }.items():
        monkeypatch.setenv(name, text)
    assert lifecycle.up().state == "running"
    monkeypatch.delenv("PGOPTIONS")
    monkeypatch.delenv("PGTARGETSESSIONATTRS")
    with psycopg.connect(**config.load().get("sandbox").keywords) as conn:  # type: ignore[arg-type]
        assert value(conn, "SELECT current_user") == "dbadmin"


def test_two_concurrent_ups_create_one_sandbox(home: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = (job.result() for job in [pool.submit(cli, "sandbox", "up", "-o", "json") for _ in range(2)])
    assert (first.returncode, second.returncode) == (0, 0)
    assert json.loads(first.stdout)["endpoint_pid"] == json.loads(second.stdout)["endpoint_pid"]


def test_config_file_is_restored(home: Path) -> None:
    path = config.config_path()
    path.parent.mkdir(parents=True)
    before = "# mine\ntargets:\n  prod:\n    host: db.example.com  # the big one\n"
    path.write_text(before)
    lifecycle.up(standby=False)
    assert set(config.load().targets) == {"prod", "sandbox"}
    edit.use_target("sandbox")
    lifecycle.down()
    assert path.read_text() == before


def test_a_foreign_target_is_not_replaced(home: Path) -> None:
    edit.set_target("sandbox", {"host": "db.example.com"})
    with pytest.raises(Refused, match="does not belong to this sandbox"):
        lifecycle.up()
    assert not home.exists()
    assert not lifecycle.down().target_removed
    assert config.load().get("sandbox").keywords == {"host": "db.example.com"}


def test_invalid_programs(home: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pg_ctl").symlink_to(NEWEST.bin_dir / "pg_ctl")
    with pytest.raises(NotFound, match="missing initdb, postgres, pg_basebackup") as caught:
        lifecycle.up(bin_dir=tmp_path / "bin")
    assert "rdsrepl[sandbox]" in (caught.value.hint or "")
    with pytest.raises(NotFound, match="is not a directory"):
        lifecycle.up(bin_dir=tmp_path / "nowhere")
    assert not home.exists()


def test_a_failed_up_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_registry, "base_settings", lambda _: {"no_such_setting": "1"})
    with pytest.raises(Error, match="did not start"):
        lifecycle.up()
    assert not home.exists() and config.load().targets == {}


# --- after a crash


def test_down_after_a_crash(home: Path) -> None:
    report = lifecycle.up()
    kill_all(report)
    assert cli("sandbox", "status").returncode == 3
    assert lifecycle.down().was_there
    assert leftovers(home, report) == []


def test_up_after_a_crash(home: Path) -> None:
    report = lifecycle.up()
    before = Running(report, NEWEST)
    with before.connect() as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS a")
    member = before.role("rds_replication")
    # As if the relay was killed between the grant and the revocation of the attribute.
    with closing(lifecycle.writer().connect()) as admin:
        admin.execute(sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(member)))
    directory().save(directory().granted_roles_file, [["sandbox", member]])
    kill_all(report)

    after = lifecycle.up()
    assert after.state == "running"
    assert (after.port, after.reader_port) == (report.port, report.reader_port)
    with Running(after, NEWEST).connect() as conn:
        assert value(conn, "SELECT a FROM kept") == 1
    assert processes.wait(lambda: not before.rolreplication(member), 120.0)


def test_down_after_a_killed_up(home: Path) -> None:
    # The last one stays when the standby starts; a backup_label can come and go between two looks.
    for wanted in ("state.json", f"{WRITER}/PG_VERSION", f"{WRITER}/postmaster.pid", f"{READER}/PG_VERSION"):
        with subprocess.Popen(
            [sys.executable, "-m", "rdsrepl", "sandbox", "up"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as up:
            assert processes.wait((home / wanted).exists, 120.0)
            up.kill()
        report = lifecycle.status()
        assert report is not None
        sockets = Path(json.loads((home / "state.json").read_text())["socket_dir"])
        assert lifecycle.down().was_there
        assert leftovers(home, report) == [] and not sockets.exists()


def test_foreign_processes_are_not_stopped(home: Path) -> None:
    report = lifecycle.up(standby=False)
    kill_all(report)
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            # Another process has these ids now.
            file = home / WRITER / "postmaster.pid"
            file.write_text("\n".join([str(stranger.pid), *file.read_text().splitlines()[1:]]) + "\n")
            said = json.loads((home / "endpoint.json").read_text())
            (home / "endpoint.json").write_text(json.dumps({**said, "pid": stranger.pid}))
            status = lifecycle.status()
            assert status is not None and status.state == "stopped"
            lifecycle.down()
            assert stranger.poll() is None
        finally:
            stranger.kill()
    assert leftovers(home, report) == []


# --- as on RDS


def test_master_user(running: Running) -> None:
    with running.connect() as conn:
        row = conn.execute(
            "SELECT rolsuper, rolreplication, rolcreatedb, rolcreaterole, pg_has_role('rds_superuser', 'member'),"
            " pg_has_role('rds_replication', 'member'), pg_has_role('pg_monitor', 'usage')"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        assert row == (False, False, True, True, True, True, True)
        assert value(conn, "SHOW wal_level") == "logical"
        assert value(conn, "SHOW server_encoding") == "UTF8"
        assert str(value(conn, "SHOW server_version")).startswith(str(running.programs.major))
        query = "SELECT setting, context, pending_restart FROM pg_settings WHERE name = 'rds.logical_replication'"
        assert conn.execute(query).fetchone() == ("on", "postmaster", False)
        conn.execute("UPDATE pg_settings SET setting = '8000' WHERE name = 'work_mem'")
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects"):
        running.connect("rdsadmin")


@pytest.mark.parametrize("where", ["writer", "reader"])
def test_a_member_can_replicate_without_the_attribute(running: Running, where: str) -> None:
    member = running.role("rds_replication")
    port = running.report.port if where == "writer" else running.report.reader_port
    with running.connect(member, port=port, replication="database") as conn:
        assert conn.execute("IDENTIFY_SYSTEM").fetchone() is not None
        assert not running.rolreplication(member)
        if where == "writer":
            slot = f"s_{uuid.uuid4().hex[:8]}"
            assert conn.execute(f"CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput").fetchone() is not None
            conn.execute(f"DROP_REPLICATION_SLOT {slot}")
    assert not running.rolreplication(member)
    assert not directory().granted_roles_file.exists()


def test_a_member_of_a_member_can_replicate(running: Running) -> None:
    with running.connect(replication="database") as conn:  # dbadmin, through rds_superuser
        assert conn.execute("IDENTIFY_SYSTEM").fetchone() is not None


def test_a_role_that_is_not_a_member_cannot_replicate(running: Running) -> None:
    stranger = running.role()
    for port in (running.report.port, running.report.reader_port):
        with pytest.raises(psycopg.OperationalError, match=r"replication role to start|permission denied to start"):
            running.connect(stranger, port=port, replication="database")
    with running.connect(stranger) as conn:
        for call in (
            "pg_create_logical_replication_slot('x', 'pgoutput')",
            "pg_drop_replication_slot('x')",
            "pg_replication_slot_advance('x', '0/1')",
            "pg_logical_slot_peek_binary_changes('x', NULL, NULL)",
        ):
            with pytest.raises(InsufficientPrivilege):
                conn.execute(f"SELECT {call}")


def test_a_wrong_password_is_refused_and_the_attribute_is_revoked(running: Running) -> None:
    member = running.role("rds_replication")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        running.connect(member, replication="database", password="wrong")
    assert not running.rolreplication(member)


def test_an_attribute_of_the_role_is_kept(running: Running) -> None:
    member = running.role("rds_replication")
    with closing(psycopg.connect(**superuser(running), autocommit=True)) as admin:  # type: ignore[arg-type]
        admin.execute(sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(member)))
    with running.connect(member, replication="database"):
        pass
    assert running.rolreplication(member)


def superuser(running: Running) -> dict[str, str]:
    state = json.loads(Path(running.report.directory, "state.json").read_text())
    return {
        "host": state["socket_dir"],
        "port": str(running.report.servers[0].port),
        "user": "rdsadmin",
        "dbname": "app",
    }


def test_many_concurrent_connections(running: Running) -> None:
    member, stranger = running.role("rds_replication"), running.role()

    def attempt(user: str, port: int | None) -> bool:
        try:
            with running.connect(user, port=port, replication="database") as conn:
                return conn.execute("IDENTIFY_SYSTEM").fetchone() is not None
        except psycopg.OperationalError:
            return False

    wanted = [(user, port) for user in (member, stranger) for port in (running.report.port, running.report.reader_port)]
    with ThreadPoolExecutor(12) as pool:
        jobs = [(user, pool.submit(attempt, user, port)) for _ in range(6) for user, port in wanted]
        outcomes = {user: {job.result() for name, job in jobs if name == user} for user in (member, stranger)}
    # While a connection has the attribute, all connections of its role have it, and no other role has.
    assert outcomes == {member: {True}, stranger: {False}}
    assert not running.rolreplication(member) and not running.rolreplication(stranger)


@pytest.mark.parametrize("template", ["template1", "template0"])
def test_slot_functions_work_for_a_member_in_every_database(running: Running, template: str) -> None:
    member, name = running.role("rds_replication"), f"d_{uuid.uuid4().hex[:8]}"
    with running.connect() as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
    slot = f"s_{uuid.uuid4().hex[:8]}"
    with running.connect(member, dbname=name) as conn:
        options = "'proto_version', '1', 'publication_names', 'p'"
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        conn.execute(f"SELECT * FROM pg_logical_slot_peek_binary_changes(%s, NULL, 10, {options})", [slot])
        conn.execute(f"SELECT * FROM pg_logical_slot_get_binary_changes(%s, NULL, 10, {options})", [slot])
        conn.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [slot, slot + "_copy"])
        conn.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])
        conn.execute("SELECT pg_drop_replication_slot(%s), pg_drop_replication_slot(%s)", [slot, slot + "_copy"])
        assert value(conn, "SELECT current_user") == member


def test_rds_superuser_can_publish_all_tables(running: Running) -> None:
    name = f"p_{uuid.uuid4().hex[:8]}"
    plain = running.role()
    rights = "SELECT count(*) FROM pg_roles WHERE rolsuper AND rolname !~ '^pg_'"
    with running.connect() as conn:
        conn.execute(sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(sql.Identifier(name)))
        assert value(conn, "SELECT puballtables FROM pg_publication WHERE pubname = %s", name)
        with pytest.raises(psycopg.errors.DuplicateObject):
            conn.execute(sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(sql.Identifier(name)))
        assert value(conn, rights) == 1
        conn.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))
        if running.programs.major >= 15:
            conn.execute(sql.SQL("CREATE PUBLICATION {} FOR TABLES IN SCHEMA public").format(sql.Identifier(name)))
            conn.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))
        assert value(conn, rights) == 1
        with pytest.raises(InsufficientPrivilege):
            conn.execute("SET ROLE rdsadmin")
    with running.connect(plain) as conn, pytest.raises(InsufficientPrivilege):
        conn.execute(sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(sql.Identifier(name)))


def test_standby_streams(running: Running) -> None:
    with running.connect() as conn:
        conn.execute("SELECT pg_create_restore_point('here')") if False else None
        conn.execute("DROP TABLE IF EXISTS streamed")
        conn.execute("CREATE TABLE streamed AS SELECT 1 AS a")
        lsn = value(conn, "SELECT pg_current_wal_lsn()::text")
    running.replayed(lsn)
    with running.connect(port=running.report.reader_port) as reader:
        assert value(reader, "SELECT pg_is_in_recovery()")
        assert value(reader, "SELECT a FROM streamed") == 1


def test_failover_slots_are_synchronized(running: Running) -> None:
    slot = f"s_{uuid.uuid4().hex[:8]}"
    make = "SELECT pg_create_logical_replication_slot(%s, 'pgoutput', failover => true)"
    with running.connect() as conn, running.connect(port=running.report.reader_port) as reader:
        if running.programs.major < 17:
            with pytest.raises(psycopg.errors.UndefinedFunction):
                conn.execute(make, [slot])
            return
        conn.execute(make, [slot])
        try:
            synced = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND synced"
            assert processes.wait(lambda: value(reader, synced, slot) == 1, 120.0)
        finally:
            conn.execute("SELECT pg_drop_replication_slot(%s)", [slot])


# --- the relay


def test_large_data_is_relayed_in_both_directions(running: Running) -> None:
    block = os.urandom(50_000).hex() * 10
    with running.connect() as conn, conn.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE bulk (line text)")
        with cursor.copy("COPY bulk FROM STDIN") as into:
            for _ in range(30):
                into.write_row([block])
        received = 0
        with cursor.copy("COPY bulk TO STDOUT") as out:
            for row in out.rows():
                assert row[0] == block
                received += 1
                if received == 3:
                    time.sleep(0.5)  # until the buffers are full
        assert received == 30


def test_cancel_reaches_the_server(running: Running) -> None:
    ended = threading.Event()
    with running.connect() as conn:

        def cancel() -> None:
            while not ended.wait(0.3):  # a request that comes before the statement cancels nothing
                conn.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        try:
            with pytest.raises(psycopg.errors.QueryCanceled):
                conn.execute("SELECT pg_sleep(120)")
        finally:
            ended.set()
            canceller.join()


def test_first_packets(running: Running) -> None:
    def ask(*packets: bytes) -> bytes:
        with closing(socket.create_connection((running.report.host, running.report.port), timeout=60)) as client:
            answer = b""
            for packet in packets:
                client.sendall(packet)
                answer = client.recv(100)
            return answer

    encryption = [(8).to_bytes(4, "big") + code.to_bytes(4, "big") for code in (80877104, 80877103)]
    assert ask(encryption[0]) == b"N" and ask(*encryption) == b"N"
    assert ask(b"\x16\x03\x01\x02\x00\x01\x00\x01") == b""  # TLS without a request
    assert ask(b"GET / HTTP/1.1\r\n\r\n") == b""


def test_a_client_that_closes_its_sending_side_gets_the_answer(running: Running) -> None:
    stranger = running.role().encode()
    body = (196608).to_bytes(4, "big") + b"user\0" + stranger + b"\0database\0app\0\0"
    with closing(socket.create_connection((running.report.host, running.report.port), timeout=60)) as client:
        client.sendall((len(body) + 4).to_bytes(4, "big") + body)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.recv(4096):
            answer += data
    assert answer.startswith(b"R") and b"SCRAM-SHA-256" in answer


def test_the_error_when_a_server_is_down(home: Path) -> None:
    report = lifecycle.up(standby=False)
    lab = Running(report, NEWEST)
    assert report.api_pid is not None
    os.kill(report.api_pid, signal.SIGKILL)  # or it would start the server again
    assert processes.wait(lambda: processes.start_time(report.api_pid or 0) is None, 120.0)
    with lab.connect() as conn:
        lifecycle.writer().stop("immediate")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="not yet accepting connections"):
        lab.connect()
    status = lifecycle.status()
    assert status is not None and status.state == "degraded"
    lifecycle.up()
    with lab.connect() as conn:
        assert value(conn, "SELECT 1") == 1


def test_the_relay_ends_when_its_directory_is_removed(home: Path) -> None:
    report = lifecycle.up(standby=False)
    pid = report.endpoint_pid
    assert pid is not None
    state = (home / "state.json").read_bytes()
    (home / "state.json").unlink()
    assert processes.wait(lambda: processes.start_time(pid) is None, 120.0)
    (home / "state.json").write_bytes(state)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_end_of_authentication_is_found_in_pieces_of_any_size(size: int) -> None:
    def message(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4, "big") + body

    before = message(b"R", b"ZZZZ\0E") + message(b"N", b"SNOTICE\0") + message(b"S", b"TimeZone\0UTC\0")
    for last in (message(b"Z", b"I"), message(b"E", b"SFATAL\0\0")):
        stream = before + last
        end = relay.AuthenticationEnd()
        cuts = [end.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
        first = cuts.index(True)
        assert len(before) < (first + 1) * size + 5 and not any(cuts[:first])


@pytest.mark.parametrize(
    ("parameters", "user", "logical"),
    [
        (b"user\0a\0replication\0database\0\0", "a", True),
        (b"user\0a\0replication\0true\0\0", "a", False),
        (b"user\0a\0database\0replication\0\0", "a", False),
        (b"\0", "", False),
    ],
)
def test_startup_packets_are_parsed(parameters: bytes, user: str, logical: bool) -> None:
    packet = (8 + len(parameters)).to_bytes(4, "big") + (196608).to_bytes(4, "big") + parameters
    startup = relay.StartupPacket.parse(packet)
    assert (startup.user, startup.logical, startup.packet) == (user, logical, packet)


# --- one server


@pytest.mark.parametrize("programs", EACH_VERSION)
def test_server(programs: Binaries, tmp_path: Path) -> None:
    primary = PostgresServer(
        tmp_path / "a", programs, settings={"log_min_messages": "warning", "cluster_name": "it's \\ a"}
    )
    try:
        primary.initdb()
        primary.start()
        port, pid = primary.port, primary.pid
        primary.start()
        assert primary.pid == pid
        standby = primary.clone(tmp_path / "b", slot="b")
        standby.start()
        try:
            with closing(primary.connect()) as conn:
                assert value(conn, "SHOW cluster_name") == "it's \\ a"
                conn.execute("CREATE TABLE public.t (a int)")
                written = value(conn, "SELECT pg_current_wal_flush_lsn()")
            # The standby has to receive everything first: a killed primary sends no more WAL.
            with closing(standby.connect()) as conn:
                assert processes.wait(lambda: value(conn, "SELECT pg_last_wal_replay_lsn()") >= written, 120.0)
            primary.kill()
            assert not primary.is_running()
            primary.restart("immediate")
            assert primary.port == port and primary.pid != pid
            standby.promote()
            with closing(standby.connect()) as conn:
                conn.execute("INSERT INTO public.t VALUES (1)")
        finally:
            standby.remove()
    finally:
        primary.remove()
    assert [path.name for path in tmp_path.iterdir()] == []
    assert primary.socket_dir is not None and not primary.socket_dir.exists()


def test_a_port_in_use_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server((postgres_server.HOST, postgres_server.free_port()))) as taken:
        ports = iter([taken.getsockname()[1], postgres_server.free_port()])
        monkeypatch.setattr(postgres_server, "free_port", lambda: next(ports))
        server = PostgresServer(tmp_path / "a", NEWEST)
        try:
            server.initdb()
            server.start()
            assert server.is_running() and server.port != taken.getsockname()[1]
        finally:
            server.remove()


def test_the_error_of_a_server_that_does_not_start(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "a", NEWEST, settings={"shared_buffers": "lots"})
    try:
        server.initdb()
        with pytest.raises(Error, match="did not start"):
            server.start()
    finally:
        with suppress(Error):
            server.remove()
