"""What other local users, web pages and the master user cannot do with a sandbox."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from botocore.exceptions import ClientError
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from rdsrepl.errors import Error, Refused
from rdsrepl.sandbox import credentials, lifecycle, server_registry
from rdsrepl.sandbox.credentials import Credentials
from rdsrepl.sandbox.directory import SandboxDirectory
from rdsrepl.sandbox.report import Report
from rdsrepl.sandbox.servers import processes, rds_roles, socket_dirs
from rdsrepl.sandbox.servers.postgres_server import PostgresServer
from tests.fixtures.postgres import find_binaries
from tests.fixtures.sandbox import signed
from tests.sandbox.test_api import Api, start
from tests.sandbox.test_lifecycle import NEWEST, isolate, kill_all, value

Headers = Mapping[str, str] | list[tuple[str, str]]

RDS = b"Action=DescribeDBParameterGroups&Version=2014-10-31"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
LIST_STREAMS = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "Kinesis_20131202.ListStreams"}
LIST_SECRETS = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "secretsmanager.ListSecrets"}
# Service, body, headers.
QUERY: list[tuple[str, bytes, dict[str, str]]] = [
    ("rds", RDS, FORM),
    ("sts", b"Action=GetCallerIdentity&Version=2011-06-15", FORM),
    ("monitoring", b"Action=ListMetrics&Version=2010-08-01", FORM),
]
JSON: list[tuple[str, bytes, dict[str, str]]] = [
    ("kinesis", b"{}", LIST_STREAMS),
    ("secretsmanager", b"{}", LIST_SECRETS),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API process without servers."""
    path = tmp_path_factory.mktemp("api")
    (path / "state.json").write_text("{}")
    made = start(path)
    yield made
    made.process.terminate()
    assert made.process.wait(120) == 0


def send(api: Api, method: str, target: str, body: bytes, headers: Headers) -> tuple[int, str]:
    """Send a request unchanged; return the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)
    pairs = list(headers.items()) if isinstance(headers, Mapping) else headers
    connection.putrequest(method, target, skip_host=any(name.lower() == "host" for name, _ in pairs))
    for name, text in [*pairs, ("Content-Length", str(len(body)))]:
        connection.putheader(name, text)
    connection.endheaders(body)
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    return answer.status, said


def sign(
    api: Api,
    service: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    keys: Credentials | None = None,
    target: str = "/",
    method: str = "POST",
) -> dict[str, str]:
    """Return the headers of a signed request."""
    made = signed(keys or api.credentials, api.url + target, body, method=method, service=service, headers=headers)
    return {name.title(): value for name, value in made.header_items()}


def code(answer: tuple[int, str]) -> tuple[int, str]:
    """Return the status and the error code, from either protocol."""
    status, text = answer
    found = re.search(r"<Code>(\w+)</Code>", text)
    return status, found[1] if found else str(json.loads(text or "{}").get("__type", ""))


@pytest.mark.parametrize(
    ("service", "body", "headers"), [*QUERY, *JSON], ids=lambda one: one if isinstance(one, str) else ""
)
def test_requests_need_a_signature_with_the_credentials_of_the_sandbox(
    api: Api, service: str, body: bytes, headers: dict[str, str]
) -> None:
    in_json = "json" in headers["Content-Type"]

    def refused(
        wanted: str, wanted_in_json: str, changed: Mapping[str, str] | list[tuple[str, str]], sent: bytes = body
    ) -> None:
        expected = (400, wanted_in_json) if in_json else (400 if wanted == "IncompleteSignature" else 403, wanted)
        assert code(send(api, "POST", "/", sent, changed)) == expected

    good = sign(api, service, body, headers)
    assert send(api, "POST", "/", body, good)[0] == 200
    refused("MissingAuthenticationToken", "MissingAuthenticationTokenException", headers)
    own = api.credentials
    for keys, wanted in (
        (Credentials("AKIATEST", "any"), ("InvalidClientTokenId", "UnrecognizedClientException")),
        (Credentials(own.access_key[:-1], own.secret_key), ("InvalidClientTokenId", "UnrecognizedClientException")),
        (Credentials(own.access_key, "any"), ("SignatureDoesNotMatch", "InvalidSignatureException")),
        (Credentials(own.access_key, own.secret_key + "x"), ("SignatureDoesNotMatch", "InvalidSignatureException")),
    ):
        refused(*wanted, sign(api, service, body, headers, keys=keys))
    mismatch = ("SignatureDoesNotMatch", "InvalidSignatureException")
    refused(*mismatch, good, body + b" ")
    refused(*mismatch, {**good, "Authorization": good["Authorization"].replace("eu-west-1", "us-east-1")})
    refused(*mismatch, {**good, "Authorization": good["Authorization"].replace(f"/{service}/", "/iam/")})
    refused(*mismatch, {**good, "Content-Type": headers["Content-Type"] + ";charset=x"})
    refused(*mismatch, {**good, "X-Amz-Extra": "not signed"})
    refused(*mismatch, {**good, "X-Amz-Date": "20200101T000000Z"})
    refused(*mismatch, {**good, "Authorization": good["Authorization"].replace("host;", "")})
    signature = good["Authorization"]
    for broken in ("", "AWS4-HMAC-SHA256", "Bearer x", "Basic YTpi", signature[:-1], signature + ", " + signature):
        refused("IncompleteSignature", "IncompleteSignatureException", {**good, "Authorization": broken})
    twice = [*good.items(), ("Authorization", signature)]
    refused("IncompleteSignature", "IncompleteSignatureException", twice)
    no_date = {name: value for name, value in good.items() if name != "X-Amz-Date"}
    refused("IncompleteSignature", "IncompleteSignatureException", no_date)
    # A session token with an access key that does not expire.
    token = sign(api, service, body, {**headers, "X-Amz-Security-Token": "x"})
    refused("InvalidClientTokenId", "UnrecognizedClientException", token)
    # A body that the signature does not include.
    for open_body in ("UNSIGNED-PAYLOAD", hashlib.sha256(b"another").hexdigest()):
        refused(*mismatch, sign(api, service, body, {**headers, "X-Amz-Content-Sha256": open_body}))


def test_a_signature_is_valid_for_five_minutes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.auth

    def answer(offset: timedelta) -> tuple[int, str]:
        with monkeypatch.context() as patch:
            patch.setattr(botocore.auth, "get_current_datetime", lambda: datetime.now(UTC) + offset)
            headers = sign(api, "rds", RDS, FORM)
        return send(api, "POST", "/", RDS, headers)

    assert answer(timedelta(minutes=-4))[0] == answer(timedelta(minutes=4))[0] == 200
    for offset, said in ((timedelta(minutes=-6), "Signature expired"), (timedelta(minutes=6), "Signature not yet")):
        late = answer(offset)
        assert code(late) == (403, "SignatureDoesNotMatch") and said in late[1]


def test_a_signature_in_the_query_string_is_refused(api: Api) -> None:
    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest

    keys = api.credentials
    request = AWSRequest(method="GET", url=f"{api.url}/?Action=GetCallerIdentity&Version=2011-06-15")
    import botocore.credentials

    SigV4QueryAuth(botocore.credentials.Credentials(keys.access_key, keys.secret_key), "sts", "eu-west-1").add_auth(
        request
    )
    assert send(api, "GET", request.url.removeprefix(api.url), b"", {})[0] == 403


def test_an_assumed_role_signs_with_its_session_token(api: Api) -> None:
    sts = api.client("sts")
    made = sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/reader", RoleSessionName="s", DurationSeconds=900)
    session = made["Credentials"]

    def who(**changed: str) -> str:
        fields = {"secret": session["SecretAccessKey"], "token": session["SessionToken"], **changed}
        client = boto3.client(
            "sts",
            endpoint_url=api.url,
            region_name="eu-west-1",
            aws_access_key_id=session["AccessKeyId"],
            aws_secret_access_key=fields["secret"],
            aws_session_token=fields["token"] or None,
        )
        try:
            return str(client.get_caller_identity()["Arn"])
        except ClientError as exc:
            return str(exc.response["Error"]["Code"])

    assert who() == "arn:aws:sts::123456789012:assumed-role/reader/s"
    assert who(token="") == who(token="x") == "InvalidClientTokenId"
    assert who(secret="x") == "SignatureDoesNotMatch"


def test_a_request_for_another_host_is_refused(api: Api) -> None:
    for host in ("attacker.example", f"attacker.example:{api.port}", "127.0.0.1", "127.0.0.1:1", ""):
        good = sign(api, "rds", RDS, {**FORM, "Host": host})
        assert send(api, "POST", "/", RDS, {**good, "Host": host})[0] == 421
    local = sign(api, "rds", RDS, {**FORM, "Host": f"localhost:{api.port}"})
    assert send(api, "POST", "/", RDS, local)[0] == 200
    twice = [*sign(api, "rds", RDS, FORM).items(), ("Host", f"127.0.0.1:{api.port}"), ("Host", "attacker.example")]
    assert send(api, "POST", "/", RDS, twice)[0] == 421
    # As a page of another site posts without a preflight request.
    plain = {"Content-Type": "text/plain", "Origin": "http://attacker.example"}
    assert code(send(api, "POST", "/", RDS, plain)) == (403, "MissingAuthenticationToken")


def test_a_body_of_unknown_or_excessive_length_is_refused(api: Api) -> None:
    """The rest of such a body would be read as the next request."""
    for coding in ("chunked", "Chunked", "gzip, chunked", "identity"):
        assert send(api, "POST", "/", RDS, [("Transfer-Encoding", coding)])[0] == 411
    for length in ("9" * 5000, str(65 * 1024 * 1024)):
        assert send(api, "POST", "/", b"", [("Content-Length", length)])[0] == 413


def test_sandbox_actions_need_a_signature(api: Api) -> None:
    rule = json.dumps({"service": "rds", "code": "Throttling", "times": None}).encode()
    for method in ("POST", "GET", "DELETE"):
        assert send(api, method, "/_sandbox/faults", rule, {})[0] == 403
    assert send(api, "POST", "/_sandbox/crash", b'{"instance": "x"}', FORM)[0] == 403
    # A signature for another path.
    assert send(api, "POST", "/_sandbox/faults", rule, sign(api, "sandbox", rule, {}))[0] == 403
    assert api.sandbox("GET") == []


@pytest.mark.parametrize(
    "path", ["/moto-api", "/moto-api/reset", "/moto-api/data.json", "/%6doto-api/reset", "/latest/meta-data/iam/"]
)
def test_the_controls_of_moto_are_not_reachable(api: Api, path: str) -> None:
    for headers in (FORM, sign(api, "rds", b"", FORM, target=path)):
        assert send(api, "POST", path, b"", headers)[0] == 404
    for target in (f"/{path}", f"{api.url}{path}"):
        headers = sign(api, "rds", b"", FORM, target=f"/{path}")
        assert send(api, "POST", target, b"", headers)[0] in (400, 403, 404)


def test_each_sandbox_has_its_own_credentials(api: Api, tmp_path: Path) -> None:
    home = SandboxDirectory(tmp_path)
    made = credentials.create(home)
    assert credentials.create(home) == credentials.read(home) == made != api.credentials
    assert re.fullmatch("AKIA[A-Z2-7]{16}", made.access_key) and len(made.secret_key) == 40
    assert made.secret_key not in repr(made)
    for path in (home.credentials_file, SandboxDirectory(api.path).credentials_file):
        assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["credentials.json"]
    seen = Path(f"/proc/{api.process.pid}")
    if seen.is_dir():
        shown = (seen / "cmdline").read_bytes() + (seen / "environ").read_bytes()
        assert api.credentials.secret_key.encode() not in shown and api.credentials.access_key.encode() not in shown
    # A link that another user created is not followed.
    home.credentials_file.unlink()
    (tmp_path / "elsewhere").write_text("")
    home.credentials_file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match=r"could not read .*credentials\.json"):
        credentials.create(home)
    assert (tmp_path / "elsewhere").read_text() == ""


# --- the master user


@dataclass(frozen=True)
class Master:
    """A server with the roles of RDS, and its master user."""

    server: PostgresServer
    marker: Path

    def connect(self, **more: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.server.port,
            autocommit=True,
            **{"user": "dbadmin", "password": "secret", "dbname": "app", **more},
        )

    @property
    def command(self) -> str:
        """SQL that runs a program if the role has the right."""
        return f"COPY (SELECT 1) TO PROGRAM 'cat > {self.marker}'"

    def superusers(self) -> list[str]:
        with closing(self.server.connect()) as conn:
            query = "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname !~ '^pg_' ORDER BY 1"
            return [row[0] for row in conn.execute(query).fetchall()]


@pytest.fixture(scope="module", params=(15, 18), ids=["pg15", "pg18"])
def master(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    programs = find_binaries(request.param)
    assert programs is not None
    path = tmp_path_factory.mktemp("roles")
    server = PostgresServer(path / "server", programs, settings=dict(server_registry.base_settings(programs)))
    spool = Path(tempfile.mkdtemp(prefix="rdsrepl-test-"))
    spool.chmod(0o777)
    try:
        server.initdb()
        server.start()
        rds_roles.apply(server, "secret")
        yield Master(server, spool / "marker")
    finally:
        with suppress(Error):
            server.stop("immediate")
        server.remove()
        shutil.rmtree(spool)


# Statements in which code of the user would run between the start and the end of the DDL of a publication.
BAD = "('(1)'::hostile_row IS NOT NULL)"
HOSTILE = (
    "CREATE TYPE hostile_row AS (a guarded)",
    f"CREATE PUBLICATION x FOR TABLE held WHERE {BAD}, TABLES IN SCHEMA public",
    "CREATE PUBLICATION x FOR TABLE held WHERE ('(1)'::hostile_row IS NOT NULL AND 'ALL TABLES' = '')",
    f"/* FOR ALL TABLES */ CREATE PUBLICATION x FOR TABLE held WHERE {BAD}",
    f"CREATE PUBLICATION x FOR TABLE held WHERE {BAD} WITH (publish = 'insert') -- ALL TABLES",
    f'CREATE PUBLICATION "x FOR ALL TABLES" FOR TABLE held WHERE {BAD}',
    f"DO $$ BEGIN CREATE PUBLICATION x FOR TABLE held WHERE {BAD}, TABLES IN SCHEMA public; END $$",
    f"SELECT 1; CREATE PUBLICATION x FOR TABLE held WHERE {BAD}, TABLES IN SCHEMA public",
    "CREATE PUBLICATION base FOR TABLE held",
    f"ALTER PUBLICATION base SET TABLE held WHERE {BAD}, TABLES IN SCHEMA public",
)


def test_the_master_user_is_not_a_superuser_while_its_code_runs(master: Master) -> None:
    with master.connect() as conn:
        conn.execute("CREATE TABLE held (a int PRIMARY KEY)")
        conn.execute("CREATE TABLE seen (super bool)")
        conn.execute(
            "CREATE FUNCTION guard(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
            "IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN "
            f"EXECUTE $e${master.command}$e$; RAISE EXCEPTION 'is a superuser'; END IF; RETURN true; END $$"
        )
        conn.execute("CREATE DOMAIN guarded AS int CHECK (guard(VALUE))")
        # The same with the text of a parameter and a statement that is elevated.
        conn.execute(
            "CREATE FUNCTION nested(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN "
            f"CREATE PUBLICATION inner_one FOR TABLE held WHERE {BAD}, TABLES IN SCHEMA public;"
            " RETURN true; END $$"
        )
        conn.execute("CREATE DOMAIN nesting AS int CHECK (nested(VALUE))")
        said = []
        for statement in HOSTILE:
            try:
                conn.execute(statement)  # type: ignore[call-overload]
            except psycopg.Error as exc:
                said.append(str(exc))
        oid = value(conn, "SELECT 'nesting'::regtype::oid::int")
        conn.pgconn.prepare(b"bound", b"CREATE PUBLICATION outer_one FOR ALL TABLES", [oid])
        said.append(conn.pgconn.exec_prepared(b"bound", [b"1"]).error_message.decode())
        assert not [one for one in said if "is a superuser" in one] and len(said) > 5
        assert not master.marker.exists()
        assert master.superusers() == ["rdsadmin"]
        # The setting does not change another role.
        conn.execute("SET rdsadmin.elevated = 'rdsadmin'")
        conn.execute("CREATE PUBLICATION plain FOR TABLE held")
        assert master.superusers() == ["rdsadmin"]


def test_publications_that_rds_superuser_creates(master: Master) -> None:
    made = (
        "CREATE PUBLICATION a FOR ALL TABLES",
        " create publication A2\n\tfor all tables with (publish = 'insert', publish_via_partition_root = true) ;\n",
        'CREATE PUBLICATION "odd "" name" FOR ALL TABLES',
        'CREATE PUBLICATION b FOR TABLES IN SCHEMA public, "Odd"',
        "CREATE PUBLICATION c FOR TABLE one, ONLY public.one2, TABLES IN SCHEMA \"Odd\" WITH (publish = 'delete')",
        "CREATE PUBLICATION d FOR TABLE one",
        "ALTER PUBLICATION d ADD TABLES IN SCHEMA public",
        'ALTER PUBLICATION d SET TABLE one2, TABLES IN SCHEMA "Odd"',
    )
    statements = [statement.replace("ONLY public.one2", "public.one2") for statement in made]
    with master.connect() as conn:
        conn.execute('CREATE SCHEMA "Odd"')
        conn.execute("CREATE TABLE one (a int PRIMARY KEY)")
        conn.execute("CREATE TABLE one2 (a int PRIMARY KEY)")
        for statement in statements:
            if master.server.version >= 15:
                with conn.transaction():
                    conn.execute(statement)  # type: ignore[call-overload]
                    assert not value(conn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        assert value(conn, "SELECT count(*) FROM pg_publication WHERE puballtables") == 3
        assert master.superusers() == ["rdsadmin"]
        # A statement in a function is not elevated.
        with pytest.raises(InsufficientPrivilege):
            conn.execute("DO $$ BEGIN CREATE PUBLICATION z FOR ALL TABLES; END $$")


def test_the_master_user_gets_no_rights_on_programs_and_files(master: Master) -> None:
    with master.connect() as conn:
        for role in ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files", "rdsadmin"):
            for statement in (f"GRANT {role} TO dbadmin", f"GRANT {role} TO rds_superuser", f"SET ROLE {role}"):
                with pytest.raises(InsufficientPrivilege):
                    conn.execute(statement)  # type: ignore[call-overload]
            assert not value(conn, "SELECT pg_has_role('dbadmin', %s, 'MEMBER')", role)
        conn.execute("CREATE ROLE helper CREATEROLE LOGIN PASSWORD 'secret' IN ROLE rds_superuser")
        with master.connect(user="helper") as helper, pytest.raises(InsufficientPrivilege):
            helper.execute("GRANT pg_execute_server_program TO helper")
        for attack in (
            master.command,
            "COPY held FROM '/etc/passwd'",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT lo_import('/etc/passwd')",
            "CREATE FUNCTION c() RETURNS int LANGUAGE c AS 'libc', 'system'",
            "CREATE EXTENSION file_fdw",
            "ALTER ROLE dbadmin SUPERUSER",
            "ALTER FUNCTION rdsadmin.before_publication() SECURITY INVOKER",
            "ALTER EVENT TRIGGER rdsadmin_after_publication DISABLE",
            "DROP SCHEMA rdsadmin CASCADE",
            "ALTER SYSTEM SET archive_command = 'x'",
            # The superuser needs no password at the unix socket, which processes of the server can reach.
            f"CREATE SUBSCRIPTION own CONNECTION 'host={master.server.socket_dir} port={master.server.port}"
            " user=rdsadmin dbname=app password=x' PUBLICATION none",
        ):
            with pytest.raises(psycopg.Error) as refused:
                conn.execute(attack)  # type: ignore[call-overload]
            assert refused.value.sqlstate in ("42501", "58P01", "0A000", "42P01", "2F003", "08006"), attack
        conn.execute("DROP ROLE helper")
        owner = "SELECT DISTINCT r.rolname FROM pg_proc p JOIN pg_roles r ON r.oid = proowner WHERE prosecdef"
        owners = {row[0] for row in conn.execute(owner + " AND proname !~ 'publication'")}
        assert owners == {"rdsrepladmin"}
        attributes = "SELECT rolsuper, rolcanlogin, rolcreaterole, rolreplication FROM pg_roles WHERE rolname = %s"
        assert conn.execute(attributes, ["rdsrepladmin"]).fetchone() == (False, False, False, True)
    assert not master.marker.exists()


def test_code_of_the_master_user_does_not_run_in_superuser_sessions(master: Master) -> None:
    hostile = (
        "CREATE SCHEMA evil",
        "CREATE FUNCTION evil.same(text, text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN "
        f"IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) current_user) THEN "
        f"EXECUTE $e${master.command}$e$; END IF; RETURN $1 OPERATOR(pg_catalog.=) $2; END $$",
        "CREATE OPERATOR evil.= (leftarg = text, rightarg = text, function = evil.same)",
        "CREATE FUNCTION evil.count() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint / 0'",
        "ALTER DATABASE postgres SET search_path = evil, pg_catalog",
        "ALTER DATABASE postgres SET default_transaction_read_only = on",
        "ALTER DATABASE postgres SET role = dbadmin",
    )
    with master.connect(dbname="postgres") as conn:
        for statement in hostile:
            conn.execute(statement)  # type: ignore[call-overload]
    try:
        with closing(master.server.administer()) as conn:
            assert value(conn, "SELECT current_user::text = 'rdsadmin' AND 'a'::text = 'a'::text AND count(*) = 1")
            assert value(conn, "SHOW search_path") == '""' or value(conn, "SHOW search_path") == ""
        rds_roles.set_password(master.server, "dbadmin", "secret")
        assert not master.marker.exists()
    finally:
        with master.connect(dbname="postgres") as conn:
            conn.execute("SET default_transaction_read_only = off")
            conn.execute("ALTER DATABASE postgres RESET ALL")
            conn.execute("DROP SCHEMA evil CASCADE")


# --- processes, directories and other users


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A sandbox with only a writer, whose owner has a secret in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        isolate(patch, tmp_path_factory.mktemp("lab"))
        patch.setenv("OWNERS_TOKEN", "open sesame")
        try:
            lifecycle.up(standby=False)
            yield
        finally:
            lifecycle.down()


@pytest.fixture
def lab(sandbox: None) -> Report:
    """The current report of that sandbox."""
    report = lifecycle.status()
    assert report is not None
    return report


def run_in(server: PostgresServer, script: str, spool: Path) -> str:
    """Run a shell script with the rights of a server's superuser; return its output."""
    printed = spool / "printed"
    with closing(server.connect()) as conn:
        conn.execute(
            sql.SQL("COPY (SELECT 1) TO PROGRAM {}").format(
                sql.Literal(f"cat > /dev/null; ({script}) > {printed} 2>&1; true")
            )
        )
    return printed.read_text()


@pytest.fixture
def spool() -> Iterator[Path]:
    """A directory to which every user may write."""
    path = Path(tempfile.mkdtemp(prefix="rdsrepl-test-", dir="/tmp"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def test_a_server_has_only_the_rights_of_its_user(lab: Report, spool: Path) -> None:
    """Servers that root starts run as another user; those of an ordinary user run as that user."""
    server = lifecycle.writer()
    status = (Path("/proc") / str(server.pid) / "status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    if os.geteuid() != 0:
        assert set(uids) == {str(os.geteuid())}
        return
    assert "0" not in uids and "Groups:\t\n" in status.replace(" ", "")
    assert next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1].strip("0") == ""
    home = Path(lab.directory)
    secret = spool / "root's"
    secret.write_text("root's own")
    secret.chmod(0o600)
    for path in (secret, home / "credentials.json", home / "pgpass", home / "state.json", Path("/proc/1/environ")):
        assert "Permission denied" in run_in(server, f'cat "{path}"', spool)
    assert "Permission denied" in run_in(server, f"ls {home}; touch /etc/rdsrepl-test; touch {home}/x", spool)
    assert not Path("/etc/rdsrepl-test").exists() and not (home / "x").exists()
    assert "not permitted" in run_in(server, f"kill -9 {lab.api_pid} {os.getpid()}", spool)
    assert run_in(server, "id -u; umask 0; unshare --user --map-root-user true; id -u", spool).split()[0] == uids[0]


def test_a_server_does_not_have_the_environment_of_its_owner(lab: Report, spool: Path) -> None:
    seen = run_in(lifecycle.writer(), "env; cat /proc/$PPID/environ", spool)
    assert "PATH=" in seen and "open sesame" not in seen and "OWNERS_TOKEN" not in seen


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers are another user's")
def test_links_in_a_data_directory_are_not_followed_as_root(lab: Report, spool: Path) -> None:
    server = lifecycle.writer()
    kept = Path(lab.directory) / "kept"
    kept.write_text("root's own")
    data = server.data_dir
    temporary = f"rdsrepl.conf.{os.getpid()}.new"
    try:
        run_in(server, f"ln -sf {kept} {temporary}", spool)
        assert (data / temporary).is_symlink()
        with pytest.raises(OSError, match="symbolic links"):
            server.reload()
        (data / "pg_logical" / "mappings" / "stolen").symlink_to(kept)
        with server.open_data_dirs() as (place,):
            with pytest.raises(PermissionError):
                (place / "pg_logical" / "mappings" / "stolen").read_text()
            (place / "made").write_text("")
        assert (data / "made").stat().st_uid == data.stat().st_uid != 0
        assert kept.read_text() == "root's own" and kept.stat().st_uid == 0
    finally:
        for name in (temporary, "pg_logical/mappings/stolen", "made"):
            (data / name).unlink(missing_ok=True)
        kept.unlink()
    server.reload()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be another user")
def test_another_user_cannot_use_the_sandbox(lab: Report) -> None:
    state = SandboxDirectory(Path(lab.directory)).read()
    assert state is not None
    pids = [str(pid) for pid in (lab.api_pid, lab.endpoint_pid, lifecycle.writer().pid)]
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, lab.directory, state.socket_dir, lab.endpoint_url, *pids],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


# What another user of the machine tries; it prints what succeeds.
ATTACK = """
import os, sys, urllib.error, urllib.request
home, sockets, url, *pids = sys.argv[1:]
url_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
def attempt(what, action, *words):
    try:
        action(*words)
    except (PermissionError, urllib.error.HTTPError):
        return
    print(what)
attempt("warm up", lambda: url_open(url))
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
for name in ("credentials.json", "aws/credentials", "pgpass", "state.json", "aws.json", "api.log", "servers"):
    attempt(name, open, os.path.join(home, name))
attempt("home", os.listdir, home)
attempt("sockets", os.listdir, sockets)
for pid in pids:
    attempt(f"environment of {pid}", open, f"/proc/{pid}/environ", "rb")
    attempt(f"end of {pid}", os.kill, int(pid), 15)
for path in ("/", "/_sandbox/faults", "/_sandbox/crash", "/moto-api/reset"):
    attempt(path, url_open, url + path, b"Action=ModifyDBCluster&Version=2014-10-31")
print("done")
"""


def test_private_files_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        processes.write_private_file(tmp_path / "secret", "x")
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_command_lines_contain_no_secrets(lab: Report) -> None:
    own = credentials.read(SandboxDirectory(Path(lab.directory)))
    password = Path(lab.passfile).read_text().strip().rpartition(":")[2]
    everybody = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended
            everybody += path.read_bytes() + b"\0"
    for secret in (own.access_key, own.secret_key, password):
        assert secret.encode() not in everybody
    for path in Path(lab.directory).rglob("*"):
        if "servers/" not in str(path.relative_to(lab.directory)) and path.is_file():
            assert path.stat().st_mode & 0o077 == 0 or path.stat().st_size == 0, path


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(monkeypatch, tmp_path)
    place = tmp_path / "sandbox"
    place.mkdir()
    if os.geteuid() == 0:
        os.chown(place, 12345, 12345)
    else:
        place.chmod(0o777)
    # Its state could name any program to run.
    (place / "state.json").write_text(json.dumps({"format": 2, "phase": "ready", "bin_dir": str(tmp_path)}))
    (tmp_path / "link").symlink_to(place)
    for path in (place, tmp_path / "link"):
        monkeypatch.setenv("RDSREPL_SANDBOX_DIR", str(path))
        for command in (lifecycle.up, lifecycle.status, lifecycle.down):
            with pytest.raises(Refused, match="belongs to another user"):
                command()
    assert [entry.name for entry in place.iterdir()] == ["state.json"]


def test_only_recorded_processes_are_stopped(tmp_path: Path, spool: Path) -> None:
    server = PostgresServer(tmp_path / "server", NEWEST)
    strangers: list[subprocess.Popen[bytes]] = []
    try:
        server.initdb()
        server.start()
        pid = server.pid
        assert pid is not None
        # A shell in the data directory, and one whose id is in the file of the server.
        shell = ["/bin/sh", "-c", "sleep 600 & wait"]
        strangers += [subprocess.Popen(shell, cwd=server.data_dir, start_new_session=True) for _ in range(2)]
        # A killed postmaster leaves a backend that waits for a program, and the program.
        with closing(server.connect()) as conn:
            backend = value(conn, "SELECT pg_backend_pid()")
            busy = f"COPY (SELECT 1) TO PROGRAM 'echo $$ > {spool}/pid; exec sleep 600'"
            waiting = threading.Thread(target=_ignored, args=(conn, busy))
            waiting.start()
            assert processes.wait(lambda: (spool / "pid").exists() and (spool / "pid").read_text() != "", 120.0)
            program = int((spool / "pid").read_text())
            os.kill(pid, signal.SIGKILL)
            server.kill_leftovers()
            waiting.join(120)
        assert processes.wait(lambda: not processes.orphaned_processes(server.data_dir), 120.0)
        assert processes.start_time(backend) is None and processes.start_time(program) is None
        recorded = json.loads(server.process_file.read_text())
        assert recorded["pid"] == pid and recorded["command"].endswith("/postgres")
        (server.data_dir / "postmaster.pid").write_text(f"{strangers[1].pid}\n{server.data_dir}\n")
        for changed in (
            {"pid": strangers[1].pid},  # another process has the id
            {"pid": strangers[1].pid, "started": processes.start_time(strangers[1].pid)},  # another program
        ):
            server.process_file.write_text(json.dumps({**recorded, **changed}))
            assert server.pid is None
            server.stop()
            server.kill()
            server.kill_leftovers()
        assert [stranger.poll() for stranger in strangers] == [None, None]
        server.start()
        assert server.is_running() and server.pid not in (pid, strangers[1].pid)
    finally:
        server.remove()
        alive = [stranger.poll() for stranger in strangers]
        for stranger in strangers:
            os.killpg(stranger.pid, signal.SIGKILL)
            stranger.wait()
    assert alive == [None, None] and list(tmp_path.iterdir()) == []


def _ignored(conn: psycopg.Connection[Any], statement: str) -> None:
    with suppress(psycopg.Error):
        conn.execute(statement)  # type: ignore[call-overload]


def test_a_program_starts_only_after_it_was_recorded(tmp_path: Path) -> None:
    def refuse(_: processes.ProcessIdentity) -> None:
        raise RuntimeError("killed")

    touch = ["/usr/bin/env", "touch", str(tmp_path / "started")]
    way = processes.Launcher()
    with pytest.raises(RuntimeError):
        processes.spawn(way, touch, tmp_path / "log", note=refuse, env=processes.environment())
    with pytest.raises(RuntimeError):
        processes.run(way, touch, timeout_seconds=10, note=refuse)
    recorded: list[processes.ProcessIdentity] = []
    # A process that is killed before it writes the line closes the pipe.
    killed = [sys.executable, "-c", KILLED.format(words=touch, log=str(tmp_path / "log"))]
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    pid = int((tmp_path / "recorded").read_text()) if (tmp_path / "recorded").exists() else 0
    assert processes.wait(lambda: processes.start_time(pid) is None, 120.0)
    assert not (tmp_path / "started").exists()
    processes.run(way, touch, timeout_seconds=10, note=recorded.append)
    assert (tmp_path / "started").exists() and recorded[0].command == "/usr/bin/env"


KILLED = """
import os, signal
from pathlib import Path
from rdsrepl.sandbox.servers import processes
def note(process):
    Path({log!r}).with_name("recorded").write_text(str(process.pid))
    os.kill(os.getpid(), signal.SIGKILL)
processes.spawn(processes.Launcher(), {words!r}, Path({log!r}), note=note, env=processes.environment())
"""


def test_a_socket_directory_of_another_user_is_not_used(lab: Report, spool: Path) -> None:
    home = SandboxDirectory(Path(lab.directory))
    before = home.read()
    assert before is not None
    sockets, way = Path(before.socket_dir), processes.launcher_for(NEWEST.program("postgres"))
    kill_all(lab)
    # As after a reboot of the machine, which empties the temporary directory.
    shutil.rmtree(sockets)
    sockets.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(sockets, 12345, 12345)
    else:
        sockets.chmod(0o755)
    (sockets / ".s.PGSQL.1").write_text("")
    try:
        report = lifecycle.up()
        after = home.read()
        assert report.state == "running" and after is not None and after.socket_dir != before.socket_dir
        assert socket_dirs.is_socket_dir(Path(after.socket_dir), way)
        assert [entry.name for entry in sockets.iterdir()] == [".s.PGSQL.1"]
    finally:
        shutil.rmtree(sockets)

    with pytest.raises(FileExistsError):
        socket_dirs.make_socket_dir(spool, way)
    real = socket_dirs.make_socket_dir(spool / "real", way)
    assert socket_dirs.is_socket_dir(real, way)
    (spool / "link").symlink_to(real)
    real.with_name("file").touch(mode=0o700)
    for name in ("link", "file", "none", "."):
        assert not socket_dirs.is_socket_dir(spool / name, way)
    real.chmod(0o750)
    assert not socket_dirs.is_socket_dir(real, way)
    # Not in a directory where other users can rename files.
    assert not socket_dirs._is_safe(spool, way) and socket_dirs._is_safe(Path("/tmp"), way)
