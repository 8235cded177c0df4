"""The config file, the environment, their precedence, masked secrets, and connection errors with remedies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rdsrepl import config
from rdsrepl.errors import ConfigError
from rdsrepl.postgres.conninfo import safe_sslmode
from tests.fixtures.program import complete

if TYPE_CHECKING:
    from tests.fixtures.postgres import Database
    from tests.fixtures.program import Program


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the config file for this test."""
    path = tmp_path / "config.yaml"
    monkeypatch.setenv("RDSREPL_CONFIG", str(path))
    return path


GOOD = """\
# our databases
current: prod   # the usual one

targets:
  prod:
    host: db.example.com  # the writer
    dbname: orders
    password: s3cret
  lab:
    dsn: postgresql://dba:hunter2@127.0.0.1:5433/lab?sslpassword=x
"""


def test_read_and_masked(file: Path) -> None:
    file.write_text(GOOD)
    loaded = config.load()
    assert loaded.current == "prod"
    shown = str({name: target.masked() for name, target in loaded.targets.items()}) + repr(loaded)
    assert "db.example.com" in shown
    for secret in ("s3cret", "hunter2", "=x'"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("targets: [1", ":1:12: not YAML"),
        ("targets:\n  a:\n   host: x\n  \tb: 1\n", ":4:3: not YAML"),
        ("targets:\n  prod: 5\n", ":2: targets.prod"),
        ("other: 1\n", ":1: unknown key 'other'"),
        ("targets:\n  a:\n    hosst: x\n", ":3: targets.a: unknown key 'hosst'"),
        ("targets:\n  a:\n    port: many\n", ":3: targets.a.port"),
        ("targets:\n  a:\n    dsn: 'no such=thing x'\n", ":3: targets.a.dsn"),
        ("targets:\n  a:\n    host: x\n    host: y\n", ":4: targets.a: 'host' is a duplicate key"),
        ("targets:\n  a:\n    host: [x]\n", ":3: targets.a.host"),
        ("current: b\ntargets:\n  a:\n    host: x\n", ":1: current: target 'b' does not exist"),
        ("targets:\n  'a b':\n    host: x\n", ":2: targets.a b"),
    ],
)
def test_a_bad_file_names_file_line_and_key(file: Path, rdsrepl: Program, text: str, where: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load()
    assert str(file) in caught.value.message
    assert where in caught.value.message
    result = rdsrepl("config", "check", "-o", "json", env={"RDSREPL_CONFIG": str(file)})
    assert (result.code, result.error["error"]) == (2, "config_error")


def test_commands(rdsrepl: Program) -> None:
    path = rdsrepl.home / "config" / "rdsrepl" / "config.yaml"
    assert rdsrepl("config", "path").out.strip() == str(path)
    assert rdsrepl("config", "check").code == 3
    path.parent.mkdir(parents=True)
    path.write_text(GOOD)
    path.chmod(0o644)
    assert "chmod 600" in rdsrepl("config", "check").err
    assert rdsrepl("config", "use", "lab").code == 0
    shown = rdsrepl("config", "show", "-o", "json").json
    assert [(target["name"], target["current"]) for target in shown] == [("lab", True), ("prod", False)]
    assert rdsrepl("config", "get-targets", "-o", "json").json == rdsrepl("config", "list", "-o", "json").json == shown
    assert rdsrepl("config", "show", "nope").code == 3
    assert rdsrepl("-t", "nope", "slot", "list").code == 3


def test_the_commands_of_kubectl(rdsrepl: Program) -> None:
    path = rdsrepl.home / "config" / "rdsrepl" / "config.yaml"
    none = rdsrepl("config", "current-target")
    assert none.code == 3 and "config set-target NAME" in none.err
    created = rdsrepl("config", "set-target", "prod", "--cluster", "orders", "--protect", "a*")
    assert created.code == 0 and "+ targets.prod.cluster: orders" in created.out
    assert "next: rdsrepl config use-target prod" in created.err
    assert path.read_text() == "targets:\n  prod:\n    cluster: orders\n    protect: [a*]\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert rdsrepl("config", "use-target", "prod").code == 0
    assert rdsrepl("config", "current-target").out == "prod\n"
    changed = rdsrepl("config", "set-target", "prod", "--user", "cdc", "--unset", "protect", "-o", "json").json
    assert [(one["key"], one["effect"], one["before"], one["after"]) for one in changed["changes"]] == [
        ("targets.prod.protect", "drop", "a*", None),
        ("targets.prod.user", "create", None, "cdc"),
    ]
    again = rdsrepl("config", "set-target", "prod", "--user", "cdc")
    assert again.code == 0 and "unchanged" in again.out
    before = path.read_bytes()
    for words in (["delete-target", "prod"], ["rename-target", "prod", "x"], ["set-target", "prod", "--user", "u"]):
        assert rdsrepl("config", *words, "--dry-run").code == 0
        assert rdsrepl("config", *words, "--check").code == 7
    assert path.read_bytes() == before
    assert rdsrepl("config", "set-target", "prod", "--user", "cdc", "--check").code == 0
    renamed = rdsrepl("config", "rename-target", "prod", "production", env={"RDSREPL_TARGET": "prod"})
    assert "~ current: prod -> production" in renamed.out and "RDSREPL_TARGET still names prod" in renamed.err
    assert rdsrepl("config", "set-target", "lab", "--host", "db.example.com", "--port", "5432").code == 0
    listed = rdsrepl("config", "get-targets").out.split("\n")
    assert [line.split()[:3] for line in listed[1:3]] == [
        ["lab", "-", "db.example.com:5432"],
        ["production", "*", "cluster"],
    ]
    assert rdsrepl("config", "get-targets", "-o", "name").out == "lab\nproduction\n"
    deleted = rdsrepl("config", "delete-target", "production")
    assert "was the current target" in deleted.err and "rdsrepl config use-target lab" in deleted.err
    assert rdsrepl("config", "current-target").code == 3
    assert complete(rdsrepl, "config", "delete-target", "") == complete(rdsrepl, "config", "use", "") == ["lab"]


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["x", "--dsn", "postgresql://u:hunter2@h/d"], "bad_value", ".pgpass"),
        (["x", "--dsn", "host=h password=hunter2"], "bad_value", "--secret ID"),
        (["x", "--dsn", "what is this hunter2"], "bad_value", "not a connection string"),
        (["x", "--password", "hunter2"], "bad_value", ".pgpass"),
        (["x", "--port", "many"], "bad_value", "--port"),
        (["x", "--sslmode", "maybe"], "bad_value", "verify-full"),
        (["x"], "usage_error", "no key is given"),
        (["x", "--protect", " "], "bad_value", "--unset protect"),
        (["x", "--host", "a\nb"], "bad_value", "does not show"),
        (["x", "--host", ""], "bad_value", "--unset host"),
        (["x", "--unset", "hots"], "bad_value", "'hots'"),
        (["x", "--host", "h", "--unset", "host"], "bad_value", "exclude each other"),
        (["x", "--cluster", "a", "--instance", "b"], "usage_error", "not both"),
        (["prod", "--instance", "b"], "usage_error", "config set-target prod --instance b --unset cluster"),
        (["a b", "--host", "h"], "bad_value", "not a valid target name"),
        (["", "--host", "h"], "bad_value", "not a valid target name"),
        (["--host", "h", "--", "-x"], "bad_value", "not a valid target name"),
        (['"', "--host", "h"], "bad_value", "not a valid target name"),
    ],
)
def test_a_wrong_target_is_refused(rdsrepl: Program, words: list[str], error: str, said: str) -> None:
    path = rdsrepl.home / "config.yaml"
    path.write_text("targets: {prod: {cluster: orders}}")
    refused = rdsrepl("config", "set-target", "-o", "json", *words, env={"RDSREPL_CONFIG": str(path)})
    assert (refused.code, refused.error["error"]) == (2, error)
    assert said in f"{refused.error['message']} {refused.error['hint']}" and "hunter2" not in refused.err
    assert path.read_text() == "targets: {prod: {cluster: orders}}"


def test_a_key_in_front_of_the_command_is_not_a_key(rdsrepl: Program) -> None:
    refused = rdsrepl("-o", "json", "--cluster", "orders", "config", "set-target", "x")
    assert refused.code == 2 and refused.error["hint"] == "write --cluster after set-target"
    assert rdsrepl("-o", "json", "--cluster", "orders", "config", "list").error["hint"] == "omit --cluster"


def test_precedence(rdsrepl: Program, db15: Database) -> None:
    """--dsn overrides --target, which overrides the current target, which overrides PG* and pg_service.conf."""
    bad = {"PGHOST": "127.0.0.1", "PGPORT": "1", "PGUSER": "u", "PGDATABASE": "d"}
    keywords = db15.server.keywords(dbname=db15.name)
    good = {f"PG{ {'dbname': 'database'}.get(key, key).upper() }": value for key, value in keywords.items()}
    assert rdsrepl("slot", "list", env=good).code == 0
    assert rdsrepl("slot", "list", env=bad).code == 5
    path = rdsrepl.home / "config" / "rdsrepl" / "config.yaml"
    path.parent.mkdir(parents=True)
    settings = "".join(f"    {key}: {value}\n" for key, value in keywords.items())
    path.write_text(f"targets:\n  here:\n{settings}  there:\n    host: 127.0.0.1\n    port: 1\n")
    assert rdsrepl("-t", "here", "slot", "list", env=bad).code == 0
    assert rdsrepl("-t", "there", "slot", "list", env=good).code == 5
    assert rdsrepl("config", "use-target", "here").code == 0
    assert rdsrepl("slot", "list", env=bad).code == 0
    assert rdsrepl("-t", "there", "slot", "list", dsn=db15.dsn).code == 2  # two servers
    service = rdsrepl.home / "services"
    service.write_text("[mine]\n" + "".join(f"{key}={value}\n" for key, value in keywords.items()))
    assert rdsrepl("slot", "list", dsn="service=mine", env={"PGSERVICEFILE": str(service)}).code == 0
    role = f"r_{db15.name}"
    db15.run(f"CREATE ROLE {role} LOGIN PASSWORD 'from-file'")
    try:
        passfile = rdsrepl.home / "pgpass"
        passfile.touch(mode=0o600)
        passfile.write_text(f"*:*:*:{role}:from-file\n")
        dsn = db15.server.dsn(user=role, dbname=db15.name)
        assert rdsrepl("slot", "list", dsn=dsn, env={"PGPASSFILE": str(passfile)}).code == 0
        named = f"{dsn} passfile={passfile}"
        assert rdsrepl("slot", "list", dsn=named, env={"PGPASSWORD": "of another server"}).code == 0
    finally:
        db15.run(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    ("host", "mode"),
    [
        ("", None),
        ("localhost", None),
        ("127.0.0.1,::1", None),
        ("/var/run/postgresql", None),
        ("db.example.com", "require"),
        ("localhost,db.example.com", "require"),
        ("x.abc.eu-west-1.rds.amazonaws.com", "verify-full"),
        ("x.abc.rds.cn-north-1.rds.amazonaws.com.cn", "verify-full"),
    ],
)
def test_tls_is_required_unless_sslmode_is_set(host: str, mode: str | None) -> None:
    assert safe_sslmode(host) == mode


def test_connection_errors_have_remedies(rdsrepl: Program, db15: Database) -> None:
    tcp = f"host=127.0.0.1 port={db15.server.port}"
    for code, error, dsn in (
        (5, "unreachable", "host=127.0.0.1 port=1 dbname=x user=y"),
        (5, "unreachable", "host=no-such-host.invalid dbname=x user=y sslmode=disable"),
        (5, "authentication_failed", f"{tcp} dbname={db15.name} user=nobody_{db15.name} password=hush-hush"),
        (3, "not_found", db15.server.dsn(dbname="no_such_database")),
        (5, "unreachable", f"{tcp} dbname={db15.name} user=y sslmode=require"),
        (2, "usage_error", "service=nope"),
        (2, "bad_value", "what is this"),
    ):
        result = rdsrepl("slot", "list", "-o", "json", dsn=dsn)
        assert (result.code, result.error["error"]) == (code, error), result.err
        assert result.error["hint"]
        assert "hush-hush" not in result.err + result.out


def test_durations_and_enumerated_values_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "targets:\n  a:\n    host: h\n    connect_timeout: 1m30s\n    tcp_user_timeout: 30 s\n    sslmode: Require\n"
        "    keepalives_idle: 30\n    auth: IAM\n"
    )
    target = config.load(path).get("a")
    assert (target.keywords["connect_timeout"], target.keywords["tcp_user_timeout"]) == ("90", "30000")
    assert (target.keywords["sslmode"], target.keywords["keepalives_idle"], target.aws.auth) == ("require", "30", "iam")
    for wrong in ("1.5s", "10GB", "-1", "soon", ""):
        path.write_text(f"targets:\n  a:\n    host: h\n    connect_timeout: '{wrong}'\n")
        with pytest.raises(ConfigError, match="connect_timeout"):
            config.load(path)
