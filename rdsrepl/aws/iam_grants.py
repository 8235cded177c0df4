"""The actions and kinds of resources that each command needs (AWS service authorization reference)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rdsrepl.aws.resources import ResourceKind

Auth = Literal["password", "iam"]


@dataclass(frozen=True, slots=True)
class Grant:
    """An action, on kinds of resources of ``iam_policy._arns``; a kind limits it to databases of that kind."""

    action: str
    on: tuple[str, ...]
    kind: ResourceKind | None = None
    conditions: tuple[tuple[str, str, str], ...] = ()


# AWS checks a call without an identifier, and a call with a filter, against every resource of the type.
_READ_CLUSTERS: Final = Grant("rds:DescribeDBClusters", ("every-cluster",))
_READ_INSTANCES: Final = Grant("rds:DescribeDBInstances", ("every-db",))
_READ_CLUSTER: Final = Grant("rds:DescribeDBClusters", ("cluster",))
_READ_INSTANCE: Final = Grant("rds:DescribeDBInstances", ("db",))
_READ_VERSIONS: Final = Grant("rds:DescribeDBEngineVersions", ("*",))
_USERS: Final = (_READ_CLUSTERS, _READ_INSTANCES)


def _groups(verb: str, *, cluster_on: str, instance_on: str, what: str = "ParameterGroup") -> tuple[Grant, ...]:
    return (
        Grant(f"rds:{verb}DBCluster{what}", (cluster_on,), "cluster"),
        Grant(f"rds:{verb}DB{what}", (instance_on,), "instance"),
    )


def _named(verb: str, what: str = "ParameterGroup") -> tuple[Grant, ...]:
    return _groups(verb, cluster_on="cluster-pg", instance_on="pg", what=what)


def _all(verb: str, what: str = "ParameterGroup") -> tuple[Grant, ...]:
    return _groups(verb, cluster_on="every-cluster-pg", instance_on="every-pg", what=what)


_FIND_GROUP: Final = _named("Describe", "ParameterGroups")
_READ_GROUP: Final = (*_FIND_GROUP, *_named("Describe", "Parameters"))
_READ_GROUPS: Final = (*_all("Describe", "ParameterGroups"), *_all("Describe", "Parameters"))
_READ_DEFAULTS: Final = (
    Grant("rds:DescribeEngineDefaultClusterParameters", ("*",), "cluster"),
    Grant("rds:DescribeEngineDefaultParameters", ("*",), "instance"),
)
_VIA_SECRETS_MANAGER: Final = (("StringLike", "kms:ViaService", "secretsmanager.*"),)

# A SQL command finds its database and logs in.
FIND_DATABASE: Final = (
    Grant("rds:DescribeDBClusters", ("cluster",), "cluster"),
    Grant("rds:DescribeDBInstances", ("db",), "instance"),
    # A member of a cluster shares the cluster's master user and secret.
    Grant("rds:DescribeDBClusters", ("every-cluster",), "instance"),
)
LOGIN: Final[Mapping[Auth, tuple[Grant, ...]]] = {
    "password": (
        Grant("secretsmanager:GetSecretValue", ("secret",)),
        Grant("kms:Decrypt", ("kms-key",), conditions=_VIA_SECRETS_MANAGER),
    ),
    "iam": (Grant("rds-db:connect", ("dbuser",)),),
}
_SQL: Final = "sql"

# RDS stores the password of a new master user in a secret; the first database of an account also needs a role for RDS.
_MASTER_SECRET: Final = (
    Grant("secretsmanager:CreateSecret", ("managed-secret",)),
    Grant("secretsmanager:TagResource", ("managed-secret",)),
    Grant("kms:DescribeKey", ("kms-key-of-secret",)),
    Grant(
        "iam:CreateServiceLinkedRole",
        ("service-role",),
        conditions=(("StringLike", "iam:AWSServiceName", "rds.amazonaws.com"),),
    ),
)
_CREATE_MEMBER: Final = Grant("rds:CreateDBInstance", ("db", "cluster", "default-pg", "og", "subgrp"))
# The proof of a reboot if the server does not answer over SQL.
_EVENTS: Final = Grant("rds:DescribeEvents", ("*",))
_REBOOTS: Final = (
    _EVENTS,
    Grant("rds:RebootDBCluster", ("cluster",), "cluster"),
    Grant("rds:RebootDBInstance", ("db",)),
)

_READ_STREAM: Final = Grant("kinesis:DescribeStreamSummary", ("stream",))
READER: Final = (
    _READ_STREAM,
    Grant("kinesis:ListShards", ("stream",)),
    Grant("kinesis:GetShardIterator", ("stream",)),
    Grant("kinesis:GetRecords", ("stream",)),
    Grant("kms:Decrypt", ("kms-key",), conditions=(("StringLike", "kms:ViaService", "kinesis.*"),)),
)
WRITER: Final = (
    _READ_STREAM,
    Grant("kinesis:ListShards", ("stream",)),
    Grant("kinesis:PutRecords", ("stream",)),
    Grant("kms:GenerateDataKey", ("kms-key",), conditions=(("StringLike", "kms:ViaService", "kinesis.*"),)),
)

# `role password --secret`.
KEEP_PASSWORD: Final = (
    Grant("secretsmanager:GetSecretValue", ("secret",)),
    Grant("secretsmanager:PutSecretValue", ("secret",)),
    Grant("secretsmanager:UpdateSecretVersionStage", ("secret",)),
    Grant("secretsmanager:CreateSecret", ("secret",)),
    Grant("kms:Decrypt", ("kms-key",), conditions=_VIA_SECRETS_MANAGER),
    Grant("kms:GenerateDataKey", ("kms-key",), conditions=_VIA_SECRETS_MANAGER),
)

# Free storage and the rate of WAL; without these permissions the commands still show the slots.
_SERVER_STATE: Final = (_READ_CLUSTERS, _READ_INSTANCES, Grant("cloudwatch:GetMetricData", ("*",)), _SQL)

GRANTS: Final[Mapping[str, tuple[Grant | str, ...]]] = {
    "param-group list": (*_all("Describe", "ParameterGroups"), *_USERS),
    "param-group show": (*_READ_GROUP, *_USERS),
    "param-group create": (
        *_named("Create"),
        *_all("Copy"),
        *_named("Modify"),
        *_READ_GROUPS,
        *_READ_DEFAULTS,
        _READ_VERSIONS,
        *_USERS,
    ),
    "param-group diff": (*_READ_GROUPS, *_READ_DEFAULTS, _READ_CLUSTER, _READ_INSTANCE, _SQL),
    "param-group set": (*_READ_GROUP, *_named("Modify"), *_USERS),
    "param-group reset": (*_READ_GROUP, *_named("Reset"), *_READ_DEFAULTS, *_USERS),
    "param-group attach": (
        *_READ_GROUPS,
        _READ_VERSIONS,
        _READ_CLUSTER,
        # The read replicas are rebooted, too.
        _READ_INSTANCES,
        Grant("rds:ModifyDBCluster", ("cluster", "cluster-pg"), "cluster"),
        # ModifyDBCluster on a Multi-AZ DB cluster modifies its members.
        Grant("rds:ModifyDBInstance", ("db", "pg")),
        *_REBOOTS,
        _SQL,
    ),
    "param-group delete": (*_FIND_GROUP, *_named("Delete"), *_USERS),
    "cluster list": (_READ_CLUSTERS,),
    "cluster show": (_READ_CLUSTER, _READ_INSTANCES, _READ_VERSIONS),
    "cluster create": (
        Grant("rds:CreateDBCluster", ("cluster", "cluster-pg", "default-cluster-pg", "og", "subgrp")),
        _CREATE_MEMBER,
        *_MASTER_SECRET,
        _READ_CLUSTER,
        _READ_INSTANCES,
        _READ_VERSIONS,
    ),
    "cluster reboot": (
        _READ_CLUSTER,
        _READ_INSTANCES,
        Grant("rds:RebootDBCluster", ("cluster",)),
        Grant("rds:RebootDBInstance", ("db",)),
        _EVENTS,
        _SQL,
    ),
    "cluster failover": (_READ_CLUSTER, _READ_INSTANCES, Grant("rds:FailoverDBCluster", ("cluster",)), _SQL),
    "cluster delete": (
        _READ_CLUSTER,
        _READ_INSTANCES,
        Grant("rds:DeleteDBCluster", ("cluster", "cluster-snapshot")),
        Grant("rds:DeleteDBInstance", ("db",)),
        Grant("rds:CreateDBClusterSnapshot", ("cluster", "cluster-snapshot")),
        Grant("rds:AddTagsToResource", ("cluster-snapshot",)),
    ),
    "instance list": (_READ_INSTANCES,),
    "instance show": (_READ_INSTANCE, _READ_CLUSTERS, _READ_VERSIONS),
    "instance create": (
        Grant("rds:CreateDBInstance", ("db", "cluster", "pg", "default-pg", "og", "subgrp")),
        Grant("rds:CreateDBInstanceReadReplica", ("db", "every-db", "pg", "default-pg", "og", "subgrp")),
        # A read replica gets its parameter group after its creation.
        Grant("rds:ModifyDBInstance", ("db", "pg")),
        Grant("rds:RebootDBInstance", ("db",)),
        _EVENTS,
        *_MASTER_SECRET,
        _READ_INSTANCE,
        _READ_CLUSTERS,
        _READ_VERSIONS,
    ),
    "instance reboot": (_READ_INSTANCES, _READ_CLUSTERS, Grant("rds:RebootDBInstance", ("db",)), _EVENTS, _SQL),
    "instance promote": (_READ_INSTANCES, Grant("rds:PromoteReadReplica", ("db",)), _SQL),
    "failover run": (_READ_INSTANCES, Grant("rds:PromoteReadReplica", ("db",)), _SQL),
    "instance failover": (_READ_INSTANCES, _READ_CLUSTERS, Grant("rds:RebootDBInstance", ("db",)), _EVENTS, _SQL),
    "instance delete": (
        _READ_INSTANCE,
        _READ_CLUSTERS,
        Grant("rds:DeleteDBInstance", ("db",)),
        Grant("rds:CreateDBSnapshot", ("db", "snapshot")),
        Grant("rds:AddTagsToResource", ("snapshot",)),
    ),
    "doctor": (
        _READ_CLUSTERS,
        _READ_INSTANCES,
        _READ_VERSIONS,
        *_READ_GROUPS,
        Grant("cloudwatch:GetMetricData", ("*",)),
        _SQL,
    ),
    "stream list": (Grant("kinesis:ListStreams", ("*",)),),
    "stream show": (_READ_STREAM, Grant("cloudwatch:GetMetricStatistics", ("*",))),
    "stream create": (_READ_STREAM, Grant("kinesis:CreateStream", ("stream",))),
    "stream delete": (_READ_STREAM, Grant("kinesis:DeleteStream", ("stream",))),
    "stream tail": READER,
    "psql": (_SQL,),
    "slot create": (_SQL,),
    "slot list": (_SQL,),
    "slot show": (_SQL,),
    "slot advance": (_SQL,),
    "slot drop": (_SQL,),
    "slot prune": _SERVER_STATE,
    "slot lag": _SERVER_STATE,
    "slot check": (
        *_SERVER_STATE,
        Grant("cloudwatch:PutMetricData", ("*",), conditions=(("StringEquals", "cloudwatch:namespace", "rdsrepl"),)),
    ),
    "slot tail": (_SQL,),
    "slot peek": (_SQL,),
    "slot watch": _SERVER_STATE,
    **dict.fromkeys(
        (
            "snapshot start",
            "snapshot list",
            "snapshot show",
            "snapshot pause",
            "snapshot resume",
            "snapshot cancel",
            "snapshot create-table",
        ),
        (_SQL,),
    ),
    "verify": (_SQL,),
    "slot alter": (_SQL,),
    "failover check": (_SQL, _READ_INSTANCE, _READ_CLUSTERS),
    "failover diff": (_SQL, _READ_INSTANCE, _READ_CLUSTERS),
    "slot pairs": (_SQL, _READ_INSTANCE, _READ_CLUSTERS),
    "slot sync": (_SQL, _READ_INSTANCE, _READ_CLUSTERS),
    "publication create": (_SQL,),
    "publication list": (_SQL,),
    "publication show": (_SQL,),
    "publication add": (_SQL,),
    "publication remove": (_SQL,),
    "publication drop": (_SQL,),
    "publication check": (_SQL,),
    "role create": (_SQL,),
    "role list": (_SQL,),
    "role show": (_SQL,),
    "role grant": (_SQL,),
    "role password": (_SQL,),
    "role drop": (_SQL,),
}
