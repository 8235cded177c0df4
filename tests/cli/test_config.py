"""The config file, the environment, their precedence, masked secrets, and connection errors with remedies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rdsrepl import config
from rdsrepl.errors import ConfigError, NotFound
from rdsrepl.postgres.conninfo import safe_sslmode

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
        ("targets: [1", "1:"),
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


def test_use_add_and_remove_keep_the_rest(file: Path) -> None:
    file.write_text(GOOD)
    config.use("lab")
    assert "# our databases" in file.read_text()
    assert config.load().current == "lab"
    config.add_target("sandbox", {"host": "127.0.0.1", "port": "5432", "passfile": "/x: y"})
    assert dict(config.load().get("sandbox").keywords) == {"host": "127.0.0.1", "port": "5432", "passfile": "/x: y"}
    assert config.remove_target("prod")
    assert not config.remove_target("prod")
    assert set(config.load().targets) == {"lab", "sandbox"}
    assert config.remove_target("lab")
    assert config.load().current is None
    assert config.remove_target("sandbox")
    config.add_target("again", {"host": "h"})
    assert set(config.load().targets) == {"again"}
    with pytest.raises(NotFound):
        config.use("nope")


def test_a_new_file_is_private(file: Path) -> None:
    config.add_target("a", {"host": "h", "password": "p"})
    assert file.stat().st_mode & 0o777 == 0o600


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
    assert rdsrepl("config", "show", "nope").code == 3
    assert rdsrepl("-t", "nope", "slot", "list").code == 3


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
    assert rdsrepl("config", "use", "here").code == 0
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
