"""IAM policies: only actions that exist, only what a command needs, on the narrowest ARNs that the action allows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
import typer

from rdsrepl.aws import iam_grants
from rdsrepl.aws.iam_policy import COMMANDS, Policy, PolicyScope, commands, policy
from rdsrepl.cli.main import app
from rdsrepl.errors import BadValue

if TYPE_CHECKING:
    from tests.fixtures.program import Program

HERE: dict[str, Any] = {"region": "eu-west-1", "account": "123456789012"}
ARN = "arn:aws:rds:eu-west-1:123456789012"
# Actions that are not API operations: https://docs.aws.amazon.com/service-authorization/ lists them.
NO_OPERATION = {"rds-db:connect"}
# Commands that use no network.
# A saved plan needs the policy of the command that made it, as a runbook needs those of its steps.
LOCAL = ("config", "sandbox", "demo", "help", "completion", "iam-policy", "runbook", "apply", "stream policy")


NOUNS = tuple(dict.fromkeys(command.split()[0] for command in COMMANDS))


def by_action(made: Policy) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for statement in made.statements:
        for action in statement.actions:
            found.setdefault(action, set()).update(statement.resources)
    return found


def verbs() -> Iterator[str]:
    for noun, group in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if noun not in LOCAL:
            children: Mapping[str, Any] = getattr(group, "commands", {"": None})
            yield from (words for verb in children if (words := f"{noun} {verb}".strip()) not in LOCAL)


@pytest.mark.parametrize("command", sorted(verbs()))
def test_every_command_that_uses_the_network_has_a_policy(command: str) -> None:
    assert command in COMMANDS


@pytest.mark.parametrize("auth", ["password", "iam"])
def test_every_action_is_an_operation_of_the_service(auth: iam_grants.Auth) -> None:
    from botocore.loaders import Loader

    operations: dict[str, set[str]] = {}
    for action in by_action(policy([], PolicyScope(auth=auth, kms_key="1234"))).keys() - NO_OPERATION:
        service, name = action.split(":")
        if service not in operations:
            operations[service] = set(Loader().load_service_model(service, "service-2")["operations"])
        assert name in operations[service], action


# The resource types of each action in the service authorization reference ("*": none).
TYPES = {
    "cloudwatch:GetMetricData": {"*"},
    "cloudwatch:PutMetricData": {"*"},
    "cloudwatch:GetMetricStatistics": {"*"},
    "kinesis:CreateStream": {"stream"},
    "kinesis:DeleteStream": {"stream"},
    "kinesis:DescribeStreamSummary": {"stream"},
    "kinesis:GetRecords": {"stream"},
    "kinesis:GetShardIterator": {"stream"},
    "kinesis:ListShards": {"stream"},
    "kinesis:ListStreams": {"*"},
    "iam:CreateServiceLinkedRole": {"role"},
    "kms:Decrypt": {"key"},
    "kms:DescribeKey": {"key"},
    "rds-db:connect": {"dbuser"},
    "rds:AddTagsToResource": {"cluster-snapshot", "snapshot"},
    "rds:CopyDBClusterParameterGroup": {"cluster-pg"},
    "rds:CopyDBParameterGroup": {"pg"},
    "rds:CreateDBCluster": {"cluster", "cluster-pg", "og", "subgrp"},
    "rds:CreateDBClusterParameterGroup": {"cluster-pg"},
    "rds:CreateDBClusterSnapshot": {"cluster", "cluster-snapshot"},
    "rds:CreateDBInstance": {"cluster", "db", "og", "pg", "subgrp"},
    "rds:CreateDBInstanceReadReplica": {"db", "og", "pg", "subgrp"},
    "rds:CreateDBParameterGroup": {"pg"},
    "rds:CreateDBSnapshot": {"db", "snapshot"},
    "rds:DeleteDBCluster": {"cluster", "cluster-snapshot"},
    "rds:DeleteDBClusterParameterGroup": {"cluster-pg"},
    "rds:DeleteDBInstance": {"db"},
    "rds:DeleteDBParameterGroup": {"pg"},
    "rds:DescribeDBClusterParameterGroups": {"cluster-pg"},
    "rds:DescribeDBClusterParameters": {"cluster-pg"},
    "rds:DescribeDBClusters": {"cluster"},
    "rds:DescribeDBEngineVersions": {"*"},
    "rds:DescribeEvents": {"*"},
    "rds:DescribeDBInstances": {"db"},
    "rds:DescribeDBParameterGroups": {"pg"},
    "rds:DescribeDBParameters": {"pg"},
    "rds:DescribeEngineDefaultClusterParameters": {"*"},
    "rds:DescribeEngineDefaultParameters": {"*"},
    "rds:FailoverDBCluster": {"cluster"},
    "rds:ModifyDBCluster": {"cluster", "cluster-pg"},
    "rds:ModifyDBClusterParameterGroup": {"cluster-pg"},
    "rds:ModifyDBInstance": {"db", "pg"},
    "rds:ModifyDBParameterGroup": {"pg"},
    "rds:PromoteReadReplica": {"db"},
    "rds:RebootDBCluster": {"cluster"},
    "rds:RebootDBInstance": {"db"},
    "rds:ResetDBClusterParameterGroup": {"cluster-pg"},
    "rds:ResetDBParameterGroup": {"pg"},
    "secretsmanager:CreateSecret": {"secret"},
    "secretsmanager:GetSecretValue": {"secret"},
    "secretsmanager:TagResource": {"secret"},
}


def kind_of(arn: str) -> str:
    """Return the type of a resource: the part before a colon or slash."""
    return "*" if arn == "*" else arn.split(":", 5)[5].replace("/", ":").split(":")[0]


@pytest.mark.parametrize("auth", ["password", "iam"])
def test_resources_are_of_the_types_that_the_action_takes(auth: iam_grants.Auth) -> None:
    found = by_action(policy([], PolicyScope(auth=auth, kms_key="1234")))
    assert {action: {kind_of(arn) for arn in arns} for action, arns in found.items()} == {
        action: kinds
        for action, kinds in TYPES.items()
        if (action != "rds-db:connect" if auth == "password" else action not in _PASSWORD_ONLY)
    }


_PASSWORD_ONLY = {"secretsmanager:GetSecretValue"}


@pytest.mark.parametrize("command", COMMANDS)
def test_only_writers_may_write(command: str) -> None:
    reads = ("Describe", "Get", "List", "Decrypt", "connect")
    writes = [a for a in by_action(policy([command], PolicyScope(**HERE))) if not a.split(":")[1].startswith(reads)]
    aws = command.split()[0] in ("param-group", "cluster", "instance", "stream")
    reader = command.split()[-1] in ("list", "show", "diff", "doctor", "tail")
    # A check may publish metrics; a switchover promotes an instance and uses its database as well.
    assert bool(writes) == ((aws and not reader) or command in ("slot check", "failover run"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_policy_names_what_it_is_limited_to(command: str) -> None:
    made = policy([command], PolicyScope(**HERE))
    for action, arns in by_action(made).items():
        for arn in arns:
            assert arn == "*" or arn.startswith(("arn:aws:", "arn:aws:iam::"))
            assert arn == "*" or ":123456789012:" in arn
        assert ("*" in arns) == (TYPES[action] == {"*"})


@pytest.mark.parametrize(
    ("command", "scope", "expected"),
    [
        (
            "slot tail",
            PolicyScope(**HERE, cluster="Orders"),
            {
                "rds:DescribeDBClusters": {f"{ARN}:cluster:orders"},
                "secretsmanager:GetSecretValue": {"arn:aws:secretsmanager:eu-west-1:123456789012:secret:rds!cluster-*"},
            },
        ),
        (
            "slot tail",
            PolicyScope(**HERE, instance="orders", secret="prod/cdc", kms_key="1234-abcd"),
            {
                "rds:DescribeDBInstances": {f"{ARN}:db:orders"},
                "rds:DescribeDBClusters": {f"{ARN}:cluster:*"},
                "secretsmanager:GetSecretValue": {
                    "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/cdc-??????"
                },
                "kms:Decrypt": {"arn:aws:kms:eu-west-1:123456789012:key/1234-abcd"},
            },
        ),
        (
            "publication list",
            PolicyScope(**HERE, cluster="orders", auth="iam", user="cdc", resource_id="cluster-ABC"),
            {
                "rds:DescribeDBClusters": {f"{ARN}:cluster:orders"},
                "rds-db:connect": {"arn:aws:rds-db:eu-west-1:123456789012:dbuser:cluster-ABC/cdc"},
            },
        ),
        (
            "role list",
            PolicyScope(**HERE, instance="orders", auth="iam"),
            {
                "rds:DescribeDBInstances": {f"{ARN}:db:orders"},
                "rds:DescribeDBClusters": {f"{ARN}:cluster:*"},
                "rds-db:connect": {"arn:aws:rds-db:eu-west-1:123456789012:dbuser:db-*/*"},
            },
        ),
        (
            "param-group delete",
            PolicyScope(**HERE, cluster="orders", parameter_group="Repl"),
            {
                "rds:DescribeDBClusterParameterGroups": {f"{ARN}:cluster-pg:repl"},
                "rds:DeleteDBClusterParameterGroup": {f"{ARN}:cluster-pg:repl"},
                "rds:DescribeDBClusters": {f"{ARN}:cluster:*"},
                "rds:DescribeDBInstances": {f"{ARN}:db:*"},
            },
        ),
        (
            "cluster reboot",
            PolicyScope(**HERE, cluster="orders", members="orders-*"),
            {
                "rds:DescribeDBClusters": {f"{ARN}:cluster:orders"},
                "rds:DescribeDBInstances": {f"{ARN}:db:*"},
                "rds:RebootDBCluster": {f"{ARN}:cluster:orders"},
                "rds:RebootDBInstance": {f"{ARN}:db:orders-*"},
                "rds:DescribeEvents": {"*"},
                "secretsmanager:GetSecretValue": {"arn:aws:secretsmanager:eu-west-1:123456789012:secret:rds!cluster-*"},
            },
        ),
        (
            "instance reboot",
            PolicyScope(**HERE, instance="orders", members="Replica-?"),
            {
                "rds:DescribeDBClusters": {f"{ARN}:cluster:*"},
                "rds:DescribeDBInstances": {f"{ARN}:db:*"},
                "rds:RebootDBInstance": {f"{ARN}:db:orders", f"{ARN}:db:replica-?"},
                "rds:DescribeEvents": {"*"},
                "secretsmanager:GetSecretValue": {"arn:aws:secretsmanager:eu-west-1:123456789012:secret:rds!db-*"},
            },
        ),
        (
            "cluster list",
            PolicyScope(region="cn-north-1"),
            {"rds:DescribeDBClusters": {"arn:aws-cn:rds:cn-north-1:*:cluster:*"}},
        ),
    ],
)
def test_policies(command: str, scope: PolicyScope, expected: dict[str, set[str]]) -> None:
    assert by_action(policy([command], scope)) == expected


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        (None, "aws"),
        ("eu-west-1", "aws"),
        ("cn-northwest-1", "aws-cn"),
        ("us-gov-west-1", "aws-us-gov"),
        ("us-iso-east-1", "aws-iso"),
        ("us-isob-east-1", "aws-iso-b"),
    ],
)
def test_partitions(region: str | None, partition: str) -> None:
    arns = by_action(policy(["cluster list"], PolicyScope(region=region)))["rds:DescribeDBClusters"]
    assert all(arn.startswith(f"arn:{partition}:rds:") for arn in arns)


def test_keys_are_only_used_through_their_service_and_roles_only_made_for_rds() -> None:
    reader = policy(["stream tail"], PolicyScope(**HERE, kms_key="1234"))
    (condition,) = [s.conditions for s in reader.statements if "kms:Decrypt" in s.actions]
    assert condition == {"StringLike": {"kms:ViaService": "kinesis.*"}}
    made = policy([noun for noun in NOUNS if noun != "stream"], PolicyScope(**HERE, kms_key="1234"))
    conditions = {action: statement.conditions for statement in made.statements for action in statement.actions}
    assert conditions["kms:Decrypt"] == {"StringLike": {"kms:ViaService": "secretsmanager.*"}}
    assert conditions["iam:CreateServiceLinkedRole"] == {"StringLike": {"iam:AWSServiceName": "rds.amazonaws.com"}}
    assert conditions["cloudwatch:PutMetricData"] == {"StringEquals": {"cloudwatch:namespace": "rdsrepl"}}
    assert {action for action, found in conditions.items() if found} == {
        "kms:Decrypt",
        "iam:CreateServiceLinkedRole",
        "cloudwatch:PutMetricData",
    }


def test_the_policy_of_a_noun_covers_its_verbs() -> None:
    noun, verbs_ = by_action(policy(["cluster"], PolicyScope(**HERE))), commands("cluster")
    assert verbs_ == tuple(f"cluster {verb}" for verb in ("list", "show", "create", "reboot", "failover", "delete"))
    assert noun == by_action(policy(verbs_, PolicyScope(**HERE)))
    assert noun.keys() == {action for verb in verbs_ for action in by_action(policy([verb], PolicyScope(**HERE)))}


def test_all_commands_fit_into_one_managed_policy() -> None:
    scope = PolicyScope(**HERE, cluster="c" * 63, members="m" * 63, parameter_group="g" * 60, secret="s" * 60)
    text = json.dumps(policy([], scope).document(), separators=(",", ":"))
    assert len(text) <= 6144, "IAM counts characters without white space"


@pytest.mark.parametrize(
    "scope",
    [
        PolicyScope(region="Ireland"),
        PolicyScope(account="12345"),
        PolicyScope(cluster='x"'),
        PolicyScope(instance=""),
        PolicyScope(members="-"),
        PolicyScope(parameter_group="1st"),
        PolicyScope(secret="two words"),
        PolicyScope(kms_key="a/b"),
        PolicyScope(user="a/b"),
        PolicyScope(resource_id="x y"),
    ],
)
def test_malformed_values_are_refused(scope: PolicyScope) -> None:
    with pytest.raises(BadValue) as caught:
        policy([], scope)
    assert caught.value.hint


@pytest.mark.parametrize("words", ["slots", "", "cluster reboots", "clust"])
def test_an_unknown_command_is_refused_with_the_known_ones(words: str) -> None:
    with pytest.raises(BadValue) as caught:
        policy([words], PolicyScope())
    for known in ("param-group list|show|create", "doctor", "slot create|"):
        assert known in (caught.value.hint or "")


def test_the_command_prints_json_and_takes_the_target(rdsrepl: Program) -> None:
    words = ("iam-policy", "--for", "slot tail", "--for", "cluster failover", "--account", "123456789012")
    result = rdsrepl(*words, "--region", "eu-west-1", "--cluster", "orders")
    assert result.code == 0, result.err
    made = json.loads(result.out)
    assert made["Version"] == "2012-10-17"
    assert all(statement["Effect"] == "Allow" for statement in made["Statement"])
    actions = {action for statement in made["Statement"] for action in statement["Action"]}
    assert {"rds:FailoverDBCluster", "secretsmanager:GetSecretValue"} <= actions
    assert f"{ARN}:cluster:orders" in result.out
    assert rdsrepl(*words, "--region", "eu-west-1", "--cluster", "orders", "-o", "json").out == result.out
    token = rdsrepl("iam-policy", "--for", "slot", "--auth", "iam", "--user", "cdc")
    assert "rds-db:connect" in token.out
    assert "secretsmanager" not in token.out


def test_the_command_refuses_unknown_names(rdsrepl: Program) -> None:
    result = rdsrepl("iam-policy", "--for", "slot tails")
    assert result.code == 2
    assert "'slot tails' is not a command" in result.err
    assert "tail" in result.err.split("hint:")[1]


def test_slot_tail_may_write_only_to_a_named_stream() -> None:
    def actions(**scope: str) -> set[str]:
        return {
            action for one in policy(["slot tail"], PolicyScope(**HERE, **scope)).statements for action in one.actions
        }

    assert actions(stream="changes") - actions() == {
        "kinesis:DescribeStreamSummary",
        "kinesis:ListShards",
        "kinesis:PutRecords",
    }
    assert "kms:GenerateDataKey" in actions(stream="changes", kms_key="1234")
    assert not any("kinesis" in action for action in actions())


def test_verify_may_read_only_a_named_stream() -> None:
    def actions(**scope: str) -> set[str]:
        return {action for one in policy(["verify"], PolicyScope(**HERE, **scope)).statements for action in one.actions}

    assert actions(stream="changes") - actions() == {
        "kinesis:DescribeStreamSummary",
        "kinesis:GetRecords",
        "kinesis:GetShardIterator",
        "kinesis:ListShards",
    }
    assert "kms:Decrypt" in actions(stream="changes", kms_key="1234")
    assert not any("kinesis" in action for action in actions())
