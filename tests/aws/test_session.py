"""Calls to AWS: error codes, credentials and regions, retries, secrets and tokens."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rdsrepl import config
from rdsrepl.aws import locations, secrets, session
from rdsrepl.config import Aws, Target
from rdsrepl.doctor import facts
from rdsrepl.errors import Error, NotFound, UsageError
from rdsrepl.parameters import attachments
from rdsrepl.postgres import conninfo
from rdsrepl.retention import rds_metrics
from tests.fixtures.sandbox import Cloud

# Error code, message, call, and the expected error.
CODES = [
    ("Throttling", 400, "throttled", 5),
    ("ThrottlingException", 400, "throttled", 5),
    ("ThrottledException", 400, "throttled", 5),
    ("RequestThrottled", 400, "throttled", 5),
    ("RequestLimitExceeded", 400, "throttled", 5),
    ("TooManyRequestsException", 400, "throttled", 5),
    ("LimitExceededException", 400, "throttled", 5),
    ("ProvisionedThroughputExceededException", 400, "throttled", 5),
    ("KMSThrottlingException", 400, "throttled", 5),
    ("KMSAccessDeniedException", 400, "denied", 5),
    ("KMSDisabledException", 400, "not_available", 4),
    ("KMSInvalidStateException", 400, "not_available", 4),
    ("KMSNotFoundException", 400, "not_available", 4),
    ("KMSOptInRequired", 400, "not_available", 4),
    ("AccessDenied", 403, "denied", 5),
    ("AccessDeniedException", 403, "denied", 5),
    ("UnauthorizedOperation", 403, "denied", 5),
    ("NotAuthorized", 403, "denied", 5),
    ("ExpiredToken", 403, "expired_credentials", 5),
    ("ExpiredTokenException", 403, "expired_credentials", 5),
    ("RequestExpired", 400, "expired_credentials", 5),
    ("TokenRefreshRequired", 400, "expired_credentials", 5),
    ("InvalidClientTokenId", 403, "no_credentials", 5),
    ("UnrecognizedClientException", 403, "no_credentials", 5),
    ("SignatureDoesNotMatch", 403, "no_credentials", 5),
    ("AuthFailure", 401, "no_credentials", 5),
    ("InvalidAccessKeyId", 403, "no_credentials", 5),
    ("MissingAuthenticationToken", 403, "no_credentials", 5),
    ("IncompleteSignature", 403, "no_credentials", 5),
    ("OptInRequired", 403, "no_credentials", 5),
    ("DBClusterNotFoundFault", 404, "not_found", 3),
    ("DBInstanceNotFound", 404, "not_found", 3),
    ("DBParameterGroupNotFound", 404, "not_found", 3),
    ("DBClusterParameterGroupNotFound", 404, "not_found", 3),
    ("DBSubnetGroupNotFoundFault", 404, "not_found", 3),
    ("ResourceNotFoundException", 404, "not_found", 3),
    ("DBParameterGroupAlreadyExists", 400, "already_exists", 4),
    ("DBClusterAlreadyExistsFault", 400, "already_exists", 4),
    ("DBInstanceAlreadyExists", 400, "already_exists", 4),
    ("DBParameterGroupQuotaExceeded", 400, "quota_exceeded", 4),
    ("DBClusterQuotaExceededFault", 403, "quota_exceeded", 4),
    ("InstanceQuotaExceeded", 400, "quota_exceeded", 4),
    ("SnapshotQuotaExceeded", 400, "quota_exceeded", 4),
    ("InvalidDBParameterGroupState", 400, "not_available", 4),
    ("InvalidDBInstanceState", 400, "not_available", 4),
    ("InvalidDBClusterStateFault", 400, "not_available", 4),
    ("InvalidParameterValue", 400, "bad_value", 2),
    ("InvalidParameterCombination", 400, "bad_value", 2),
    ("InvalidParameterException", 400, "bad_value", 2),
    ("InvalidRequestException", 400, "bad_value", 2),
    ("ValidationError", 400, "bad_value", 2),
    ("ValidationException", 400, "bad_value", 2),
    ("MissingParameter", 400, "bad_value", 2),
    ("InsufficientDBInstanceCapacity", 400, "not_available", 4),
    ("InternalFailure", 500, "unreachable", 5),
    ("InternalError", 500, "unreachable", 5),
    ("InternalServiceError", 500, "unreachable", 5),
    ("ServiceUnavailable", 503, "unreachable", 5),
    ("KMSKeyNotAccessibleFault", 400, "aws_error", 1),
]


def fault(operation: str, code: str, status: int = 400, **more: Any) -> Mapping[str, Any]:
    return {"service": "rds", "operation": operation, "code": code, "status": status, "message": "no", **more}


@pytest.mark.parametrize(("code", "status", "name", "exit_code"), CODES, ids=[row[0] for row in CODES])
def test_each_code_becomes_an_error_with_a_remedy(
    cloud: Cloud, code: str, status: int, name: str, exit_code: int
) -> None:
    cloud.faults(fault("DescribeDBClusters", code, status, times=100))
    identity = Aws(region="eu-west-1", endpoint_url=cloud.url, **_credentials(cloud))
    with pytest.raises(Error) as caught:
        session.call(identity, "rds", "DescribeDBClusters", {})
    assert (caught.value.name, int(caught.value.exit_code)) == (name, exit_code)
    assert caught.value.aws_code == code and caught.value.request_id
    assert caught.value.hint or name == "aws_error"


def test_the_table_has_every_code_of_the_session_module() -> None:
    named = session.THROTTLED | session.DENIED | session.EXPIRED | session.BAD_CREDENTIALS | session.BAD_VALUES
    named |= session.BAD_KEYS
    assert (named | session.FAILURES) - {row[0] for row in CODES} == set()


@pytest.fixture(autouse=True)
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_RETRY_MODE", "standard")  # adaptive goes slowly after a throttle


def _credentials(cloud: Cloud) -> dict[str, str]:
    env = cloud.program.env
    return {"profile": "sandbox", "aws_credentials_file": env["AWS_SHARED_CREDENTIALS_FILE"],
            "aws_config_file": env["AWS_CONFIG_FILE"]}  # fmt: skip


def test_an_error_is_one_line_with_code_request_and_remedy(cloud: Cloud) -> None:
    cloud.faults(fault("DescribeDBClusters", "AccessDenied", 403, times=9))
    failed = cloud("cluster", "list")
    assert failed.code == 5
    assert failed.err.splitlines()[0].startswith("error: DescribeDBClusters: no [AccessDenied, request ")
    assert "rds:DescribeDBClusters" in failed.err.splitlines()[1] and "iam-policy" in failed.err.splitlines()[1]
    document = cloud("cluster", "list", "-o", "json").error
    assert document["aws_code"] == "AccessDenied" and document["request_id"] and document["exit_code"] == 5


def test_a_denied_key_names_the_action(cloud: Cloud) -> None:
    failed = cloud("cluster", "list", env=_keys("AKIADENIED0000000000", cloud.credentials.secret_key))
    assert failed.code == 5 and "rds:DescribeDBClusters" in failed.err.splitlines()[1]


def test_expired_credentials(cloud: Cloud) -> None:
    failed = cloud("instance", "list", env=_keys("AKIAEXPIRED000000000", cloud.credentials.secret_key))
    assert failed.code == 5 and "aws sso login" in failed.err


def test_no_credentials(cloud: Cloud) -> None:
    env = {"AWS_PROFILE": None, "AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_CONFIG_FILE": "/nowhere",
           "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
    failed = cloud("cluster", "list", env=env)
    assert failed.code == 5 and "unable to locate credentials" in failed.err and "AWS_PROFILE" in failed.err


def test_an_unknown_profile(cloud: Cloud) -> None:
    failed = cloud("cluster", "list", "--profile", "nobody")
    assert failed.code == 3 and "list-profiles" in failed.err


def test_no_region(cloud: Cloud) -> None:
    env = {"AWS_REGION": None, "AWS_DEFAULT_REGION": None, "AWS_PROFILE": None, "AWS_CONFIG_FILE": "/nowhere"}
    failed = cloud("cluster", "list", env={**env, **_keys("AKIATEST")})
    assert failed.code == 2 and "--region" in failed.err


def test_a_wrong_region_is_named_in_the_error(cloud: Cloud) -> None:
    assert cloud("cluster", "list", "--region", "ap-south-1", "-o", "json").json == []
    failed = cloud("cluster", "show", "sandbox", "--region", "ap-south-1")
    assert failed.code == 3 and "region ap-south-1" in failed.err


def test_an_unreachable_endpoint(cloud: Cloud) -> None:
    failed = cloud("cluster", "list", env={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert failed.code == 5 and "AWS_ENDPOINT_URL" in failed.err


def test_a_malformed_endpoint(cloud: Cloud) -> None:
    failed = cloud("cluster", "list", env={"AWS_ENDPOINT_URL": "nonsense"})
    assert failed.code == 2 and "endpoint" in failed.err


def test_throttling_is_retried(cloud: Cloud) -> None:
    cloud.faults(fault("DescribeDBClusters", "Throttling", times=2))
    listed = cloud("cluster", "list", "-o", "json", env={"AWS_MAX_ATTEMPTS": "4"})
    assert listed.code == 0 and [row["cluster_id"] for row in listed.json] == ["sandbox"]


def test_permanent_throttling_ends_with_a_hint(cloud: Cloud) -> None:
    cloud.faults(fault("DescribeDBClusters", "Throttling", times=100))
    failed = cloud("cluster", "list")
    assert failed.code == 5 and "run the command again later" in failed.err


def test_cluster_and_instance_exclude_each_other(cloud: Cloud) -> None:
    failed = cloud("slot", "list", "--cluster", "a", "--instance", "b")
    assert failed.code == 2


def test_sql_commands_find_a_cluster_s_database(cloud: Cloud) -> None:
    """The endpoint comes from the API, the login from the target."""
    missing = cloud("slot", "list", "--cluster", "nowhere")
    assert missing.code == 3 and "rdsrepl cluster list" in missing.err
    found = cloud("-t", "sandbox", "slot", "list", "--cluster", "sandbox", "-o", "json")
    assert found.code == 0 and any(slot["slot_type"] == "physical" for slot in found.json)


def test_an_identifier_of_the_other_kind_is_recognized(cloud: Cloud) -> None:
    """The hint is the typed command on the server that has the identifier, or the same verb of the other noun."""
    (cluster,) = cloud.client("rds").describe_db_clusters(DBClusterIdentifier="sandbox")["DBClusters"]
    member = cluster["DBClusterMembers"][0]["DBInstanceIdentifier"]
    also = f"{member} is an instance, a member of cluster sandbox: "
    for typed, hint in (
        ("doctor --instance sandbox --skip ssl", "sandbox is a cluster: rdsrepl --cluster sandbox doctor --skip ssl"),
        (
            "-o json --instance=sandbox slot show x",
            "sandbox is a cluster: rdsrepl --cluster sandbox -o json slot show x",
        ),
        ("instance show sandbox", "sandbox is a cluster: rdsrepl cluster show sandbox"),
        ("instance reboot sandbox --yes", "sandbox is a cluster: rdsrepl cluster reboot sandbox --yes"),
        (
            f"slot list --cluster {member} -d 'a b' --region eu-west-1",
            f"{also}rdsrepl --cluster sandbox --dbname 'a b' --region eu-west-1 slot list, "
            f"or rdsrepl --instance {member} --dbname 'a b' --region eu-west-1 slot list",
        ),
        (
            "param-group create x --instance sandbox --region eu-west-1",
            "sandbox is a cluster: rdsrepl --cluster sandbox --region eu-west-1 param-group create x",
        ),
        (f"cluster show {member}", f"{also}rdsrepl cluster show sandbox, or rdsrepl instance show {member}"),
        (
            "slot list --cluster nowhere",
            "list the existing ones: rdsrepl cluster list (in region eu-west-1; choose another with --region)",
        ),
    ):
        missing = cloud(*shlex.split(typed), "-o", "json")
        assert missing.code == 3
        assert missing.error["hint"].replace(" -o json", "") == hint.replace(" -o json", ""), typed
    cloud.faults({"service": "rds", "operation": "DescribeDBClusters", "code": "AccessDenied", "status": 403})
    denied = cloud("slot", "list", "--instance", "nowhere", "-o", "json")
    assert (denied.code, denied.error["error"]) == (3, "not_found") and "rdsrepl instance list" in denied.error["hint"]


def test_only_the_endpoint_comes_from_the_api(cloud: Cloud) -> None:
    identity = Aws(region="eu-west-1", endpoint_url=cloud.url, cluster="sandbox", **_credentials(cloud))
    server = locations.describe(identity)
    assert server is not None
    found = locations.location_of(server)
    assert (found.host, found.port, found.user) == ("127.0.0.1", cloud.report["port"], "dbadmin")


@pytest.mark.parametrize("dsn", ["", "host=127.0.0.1 connect_timeout=2"])
def test_a_cluster_is_described_once_a_command(cloud: Cloud, dsn: str) -> None:
    """All parts of a command share one description of the cluster, also the connection."""
    identity = Aws(region="eu-west-1", endpoint_url=cloud.url, cluster="sandbox", **_credentials(cloud))
    calls: list[str] = []
    clients = [session.client(identity, "rds")]
    with session.short_timeouts(rds_metrics._TIMEOUT_SECONDS):
        clients.append(session.client(identity, "rds"))
    for client in clients:
        client.meta.events.register("before-call.rds.DescribeDBClusters", lambda **_: calls.append("call"))
    target = locations.with_rds_lookup(Target("cluster sandbox", dsn, aws=identity))
    if dsn:
        locations.require_same_server(target)
    attached = attachments.attach_target(target)
    assert attached is not None and attached.identifier == "sandbox"
    assert rds_metrics.read(target).instance_id == "sandbox-instance-1"
    assert facts.gather(target, wanted=frozenset()).rds is not None
    assert calls == ["call"]


def test_each_attempt_fetches_the_password(cloud: Cloud) -> None:
    manager = cloud.client("secretsmanager")
    name = "rotating"
    manager.create_secret(Name=name, SecretString=json.dumps({"username": "cdc", "password": "first-word"}))
    identity = Aws(region="eu-west-1", endpoint_url=cloud.url, cluster="sandbox", secret=name, **_credentials(cloud))
    target = locations.with_rds_lookup(Target("test", aws=identity))
    assert target.renew is not None
    first = target.renew.keywords()
    manager.put_secret_value(SecretId=name, SecretString=json.dumps({"username": "cdc", "password": "second-word"}))
    second = target.renew.keywords()
    assert (first["user"], first["password"], second["password"]) == ("cdc", "first-word", "second-word")
    assert "-word" not in repr(target)
    manager.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)


@pytest.mark.parametrize("text", ["no json", "[]", '{"username": "cdc"}', '"text"'])
def test_a_secret_in_another_format_is_not_quoted(cloud: Cloud, text: str) -> None:
    manager = cloud.client("secretsmanager")
    manager.create_secret(Name="odd", SecretString=text)
    identity = Aws(region="eu-west-1", endpoint_url=cloud.url, **_credentials(cloud))
    try:
        with pytest.raises(Error) as caught:
            secrets.get(identity, "odd")
        assert caught.value.hint is not None and '"password"' in caught.value.hint
        assert text not in caught.value.message and caught.value.__cause__ is None
    finally:
        manager.delete_secret(SecretId="odd", ForceDeleteWithoutRecovery=True)


def test_a_missing_secret(cloud: Cloud) -> None:
    identity = Aws(region="eu-west-1", endpoint_url=cloud.url, **_credentials(cloud))
    with pytest.raises(NotFound):
        secrets.get(identity, "nothing")


def test_each_attempt_gets_a_new_iam_token(cloud: Cloud) -> None:
    identity = Aws(region="eu-west-1", endpoint_url=cloud.url, cluster="sandbox", auth="iam", **_credentials(cloud))
    target = locations.with_rds_lookup(Target("test", keywords={"user": "cdc"}, aws=identity))
    assert target.renew is not None
    keywords = target.renew.keywords()
    token = keywords["password"]
    assert token.startswith(f"127.0.0.1:{cloud.report['port']}/?Action=connect&DBUser=cdc&X-Amz-Algorithm=")
    assert "X-Amz-Expires=900" in token and "Credential" in token


def test_an_iam_token_needs_a_user(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGUSER", raising=False)
    identity = Aws(region="eu-west-1", endpoint_url=cloud.url, auth="iam", **_credentials(cloud))
    target = locations.with_rds_lookup(Target("test", keywords={"host": "h"}, aws=identity))
    assert target.renew is not None
    with pytest.raises(UsageError, match="needs a host and a user"):
        target.renew.keywords()


def test_the_rds_bundle_is_found_beside_the_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RDS certificates are verified; without a bundle, the error says how to get it and where to put it."""
    for name in ("PGSSLMODE", "PGSSLROOTCERT", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RDSREPL_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    host = "orders.cluster-abc.eu-west-1.rds.amazonaws.com"
    target = Target("test", keywords={"host": host, "hostaddr": "127.0.0.1", "port": "1", "user": "u"})
    found = conninfo.keywords(target)
    assert found["sslmode"] == "verify-full" and "sslrootcert" not in found
    (tmp_path / "global-bundle.pem").write_text("")
    assert conninfo.keywords(target)["sslrootcert"] == str(tmp_path / "global-bundle.pem")
    own = Target("test", keywords={**target.keywords, "sslrootcert": "/own.pem"})
    assert conninfo.keywords(own)["sslrootcert"] == "/own.pem"
    assert conninfo.keywords(Target("test", keywords={"host": "db.example.com"}))["sslmode"] == "require"


def test_options_override_the_target(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "targets:\n  prod:\n    host: h\n    user: u\n    sslrootcert: /ca.pem\n    profile: p\n    region: r1\n"
        "    cluster: one\n"
    )
    monkeypatch.setenv("RDSREPL_CONFIG", str(path))
    same = config.resolve(dsn=None, target="prod", aws=Aws(cluster="one", profile="p2"))
    assert same.keywords["host"] == "h" and same.aws == Aws(profile="p2", region="r1", cluster="one")
    for options in (Aws(cluster="one", region="r2"), Aws(region="r2")):
        elsewhere = config.resolve(dsn=None, target="prod", aws=options)
        assert "host" not in elsewhere.keywords, "a cluster of the same name in another region is another cluster"
        assert (elsewhere.label, elsewhere.aws) == ("cluster one", Aws(profile="p", region="r2", cluster="one"))
    other = config.resolve(dsn=None, target="prod", aws=Aws(cluster="two"))
    assert dict(other.keywords) == {"sslrootcert": "/ca.pem"}, "another cluster's host and login are not this one's"
    assert other.aws == Aws(profile="p", region="r1", cluster="two") and other.label == "cluster two"


def test_the_keys_of_a_target_are_checked(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    monkeypatch.setenv("RDSREPL_CONFIG", str(path))
    for line, expected_hint in [
        ("auth: kerberos", "password, iam"),
        ("endpoint_url: nonsense", "http://"),
        ("cluster: a\n    instance: b", "remove one"),
        ("regoin: x", "region"),
    ]:
        path.write_text(f"targets:\n  prod:\n    {line}\n")
        with pytest.raises(Error) as caught:
            config.load()
        assert expected_hint in str(caught.value.hint)


def _keys(key: str, secret: str = "any") -> dict[str, str | None]:
    return {"AWS_PROFILE": None, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
