"""The command line decides which server a command works on, and every plan names that server."""

from __future__ import annotations

import pytest

from rdsrepl import config
from rdsrepl.config import Aws
from rdsrepl.errors import UsageError
from tests.fixtures.postgres import Database
from tests.fixtures.program import Program
from tests.fixtures.sandbox import Cloud


def write_config(rdsrepl: Program, text: str) -> None:
    path = rdsrepl.home / "config" / "rdsrepl" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def keywords_of(database: Database) -> str:
    return "".join(f"    {k}: {v}\n" for k, v in database.server.keywords(dbname=database.name).items())


def test_a_target_option_overrides_the_environment(rdsrepl: Program, db15: Database) -> None:
    write_config(rdsrepl, f"targets:\n  here:\n{keywords_of(db15)}")
    db15.run("SELECT pg_create_logical_replication_slot('named', 'pgoutput')")
    words = ("-t", "here", "slot", "drop", "named", "--dry-run", "-o", "json")
    for name, value in (("CLUSTER", "pg18"), ("INSTANCE", "pg18"), ("DSN", "host=127.0.0.1 port=1"), ("DBNAME", "x")):
        result = rdsrepl(*words, env={f"RDSREPL_{name}": value})
        assert result.code == 0, result.err
        server = result.json["server"]
        assert (server["label"], server["dbname"]) == ("target here", db15.name)
        assert server["port"] == str(db15.server.port)
        assert f"RDSREPL_{name} is ignored" in rdsrepl("-v", *words, env={f"RDSREPL_{name}": value}).err


def test_plans_and_questions_name_the_server(rdsrepl: Program, db15: Database) -> None:
    db15.run("SELECT pg_create_logical_replication_slot('named', 'pgoutput')")
    server = db15.server
    place = f"--dsn ({server.socket_dir}:{server.port}/{db15.name}, as {server.superuser})"
    shown = rdsrepl("slot", "drop", "named", "--dry-run", dsn=db15.dsn)
    assert shown.out.splitlines()[0] == f"On {place}"
    refused = rdsrepl("slot", "drop", "named", dsn=db15.dsn)
    assert refused.code == 4 and f"On {place}" in refused.err
    dropped = rdsrepl("slot", "drop", "named", "--yes", dsn=db15.dsn)
    assert dropped.code == 0 and f"On {place}" in dropped.err


def test_dbname_and_user_override_those_of_the_dsn(rdsrepl: Program, db15: Database) -> None:
    role = f"r_{db15.name}"
    db15.run(f"CREATE ROLE {role} LOGIN PASSWORD 'of-the-role'")
    try:
        wrong = db15.server.dsn(user="no_such_role", dbname="nowhere") + " password=of-no-role"
        for words in (("-d", db15.name, "-U", role), ("--dbname", db15.name, "--user", role)):
            assert rdsrepl("slot", "list", *words, dsn=wrong, env={"PGPASSWORD": "of-the-role"}).code == 0
            # The password in the dsn belongs to the role it names; it is not used for another role.
            assert rdsrepl("slot", "list", *words, dsn=wrong).code == 5
        shown = rdsrepl("slot", "create", "s", "--dry-run", "-o", "json", "-d", db15.name, dsn=db15.server.dsn())
        assert shown.json["server"]["dbname"] == db15.name
    finally:
        db15.run(f"DROP ROLE {role}")


def test_options_that_name_different_servers_are_refused(rdsrepl: Program) -> None:
    write_config(rdsrepl, "targets:\n  a:\n    host: a\n  b:\n    host: b\n  account:\n    profile: prod\n")
    for words in (
        ("-t", "a", "slot", "list", "-t", "b"),
        ("--cluster", "a", "slot", "list", "--cluster", "b"),
        ("--cluster", "a", "slot", "list", "--instance", "b"),
        ("--dsn", "host=a", "slot", "list", "-t", "b"),
        ("--cluster", "a", "cluster", "failover", "b"),
        ("--dsn", "dbname=app", "slot", "list", "--instance", "a"),
    ):
        result = rdsrepl(*words, env={"AWS_REGION": "eu-west-1"})
        assert result.code == 2, (words, result.err)
    secret = rdsrepl("--dsn", "host=a password=hidden", "slot", "list", "--dsn", "host=b password=hidden")
    assert secret.code == 2 and "hidden" not in secret.err


def test_a_cluster_option_selects_the_server(cloud: Cloud) -> None:
    endpoint = cloud.client("rds").describe_db_clusters(DBClusterIdentifier="sandbox")["DBClusters"][0]
    login = cloud("sandbox", "env", "-o", "json").json
    elsewhere = {**login, "PGHOST": "127.0.0.1", "PGPORT": "1"}
    plan = ("role", "create", "named", "--generate-password", "--dry-run", "-o", "json")
    for stray in ({"RDSREPL_DSN": "dbname=app"}, {"RDSREPL_INSTANCE": "nope"}, {"RDSREPL_CLUSTER": "nope"}):
        result = cloud("--cluster", "sandbox", *plan, env={**elsewhere, **stray})
        assert result.code == 0, result.err
        server = result.json["server"]
        assert (server["label"], server["host"], server["port"]) == (
            "cluster sandbox",
            endpoint["Endpoint"],
            str(endpoint["Port"]),
        )
    text = cloud("--cluster", "sandbox", *plan[:-2], env=elsewhere)
    assert text.out.startswith(f"On cluster sandbox (writer {endpoint['Endpoint']}:")
    other = cloud("--cluster", "sandbox", "--dsn", "host=localhost dbname=app", *plan)
    assert other.code == 2 and "name different servers" in other.err
    doctor = cloud("doctor", "--cluster", "sandbox", "--dsn", "host=localhost dbname=app")
    assert doctor.code == 2
    calls = cloud("param-group", "create", "named", "--cluster", "sandbox", "--dry-run")
    assert calls.out.startswith("On AWS region "), calls.out + calls.err


def test_the_account_of_a_target_option_overrides_the_environment(
    rdsrepl: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(rdsrepl, "targets:\n  a:\n    profile: own\n    host: a\n  b:\n    host: b\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(rdsrepl.home / "config"))
    environment = Aws(profile="env", region="eu-west-1")
    own = config.resolve(dsn=None, target="a", defaults=environment)
    assert (own.aws.profile, own.aws.region) == ("own", "eu-west-1")
    assert config.resolve(dsn=None, target="b", defaults=environment).aws.profile == "env"
    assert config.resolve(dsn=None, target="a", aws=Aws(profile="typed"), defaults=environment).aws.profile == "typed"
    with pytest.raises(UsageError, match="both name a server"):
        config.resolve(dsn="host=x", target="a")


def test_another_server_that_does_not_exist(cloud: Cloud) -> None:
    """The name may be meant as a target or as an instance, so the error names both; the first typing error is named."""
    alone = cloud("failover", "diff", "--old", "nowhere", "--new", "nowhere-replica", "-o", "json")
    assert (alone.code, alone.error["aws_code"]) == (3, "DBInstanceNotFound"), "AWS_REGION is enough to look it up"
    login = cloud("sandbox", "env", "-o", "json").json
    unknown = cloud("--cluster", "sandbox", "verify", "--to", "nowhere", "-o", "json", env=login)
    assert (unknown.code, unknown.error["aws_code"]) == (3, "DBInstanceNotFound"), unknown.err
    assert unknown.error["message"] == "--to nowhere is neither a target of the config file nor an instance"
    assert "rdsrepl config get-targets" in unknown.error["hint"] and "instance list" in unknown.error["hint"]
    near = cloud("--cluster", "sandbox", "verify", "--to", "sandbx", env=login)
    assert (near.code, "did you mean sandbox?" in near.err) == (3, True), near.err
