"""Database engines: which are PostgreSQL, their versions, and the topologies that they run in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from rdsrepl.aws import session
from rdsrepl.config import Aws
from rdsrepl.errors import BadValue, Refused
from rdsrepl.text.commands import command

Topology = Literal["instance", "multi_az_cluster", "aurora"]
ClusterTopology = Literal["multi_az_cluster", "aurora"]

POSTGRES: Final = ("postgres", "aurora-postgresql")
# By the start of the engine name in the API; a longer start stands before a shorter one.
_LABELS: Final = (
    ("aurora-mysql", "Aurora MySQL"),
    ("aurora", "Aurora MySQL"),
    ("custom-oracle", "RDS Custom for Oracle"),
    ("custom-sqlserver", "RDS Custom for SQL Server"),
    ("db2", "Db2"),
    ("docdb", "DocumentDB"),
    ("mariadb", "MariaDB"),
    ("mysql", "MySQL"),
    ("neptune", "Neptune"),
    ("oracle", "Oracle"),
    ("sqlserver", "SQL Server"),
)


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """A version that AWS offers: ``postgres``, ``16.4``, ``postgres16``."""

    engine: str
    version: str
    family: str


def is_aurora(engine: str) -> bool:
    """Return whether an engine, or a parameter group family, belongs to Aurora."""
    return engine.startswith("aurora")


def cluster_topology(engine: str) -> ClusterTopology:
    """Return the topology of a DB cluster with this engine."""
    return "aurora" if is_aurora(engine) else "multi_az_cluster"


def topology(engine: str, *, in_cluster: bool) -> Topology:
    """Return the topology of a server with this engine.

    Args:
        engine: the name in the API, or a parameter group family.
        in_cluster: the server is a member of a DB cluster.
    """
    return cluster_topology(engine) if in_cluster or is_aurora(engine) else "instance"


def is_postgres(row: Mapping[str, Any]) -> bool:
    """Return whether a described cluster or instance is PostgreSQL, on RDS or Aurora."""
    return row.get("Engine") in POSTGRES


def label(engine: str) -> str:
    """Return the product name of an engine: ``MySQL`` for ``mysql``."""
    return next((name for start, name in _LABELS if engine.startswith(start)), engine)


def require_postgres(row: Mapping[str, Any], noun: str, identifier: str) -> None:
    """Refuse a described cluster or instance of another engine, before any other field is read.

    Args:
        row: an element of a describe response.
        noun: ``cluster`` or ``instance``.
        identifier: the identifier of the cluster or instance.

    Raises:
        Refused: the engine is not PostgreSQL.
    """
    if not is_postgres(row):
        raise Refused(
            f"{noun} {identifier} is {label(str(row.get('Engine', 'of an unknown engine')))}, not PostgreSQL",
            hint=f"list the PostgreSQL {noun}s of the region: {command(f'{noun} list')}",
        )


def ls(aws: Aws, engine: str | None = None) -> tuple[EngineVersion, ...]:
    """Return the PostgreSQL versions that AWS offers in the region (DescribeDBEngineVersions).

    Raises:
        Error: AWS refused.
    """
    versions = []
    for name in (engine,) if engine else POSTGRES:
        rows = session.pages(aws, "rds", "DescribeDBEngineVersions", "DBEngineVersions", {"Engine": name})
        versions += [EngineVersion(name, row["EngineVersion"], row["DBParameterGroupFamily"]) for row in rows]
    return tuple(versions)


def family(aws: Aws, engine: str, version: str) -> str:
    """Return the parameter group family of a version: ``aurora-postgresql16``.

    Raises:
        BadValue: AWS does not offer the version.
    """
    request = {"Engine": engine, "EngineVersion": version, "IncludeAll": True}
    for row in session.pages(aws, "rds", "DescribeDBEngineVersions", "DBEngineVersions", request):
        return str(row["DBParameterGroupFamily"])
    raise BadValue(
        f"{engine} version {version} is not available on AWS",
        hint=f"list the versions: aws rds describe-db-engine-versions --engine {engine}",
    )


def check_family(aws: Aws, name: str) -> str:
    """Return NAME if it is a parameter group family of PostgreSQL.

    Raises:
        BadValue: it is not; the hint lists the families.
    """
    known = {version.family for version in ls(aws)}
    if name in known:
        return name
    raise BadValue(
        f"{name!r} is not a parameter group family of PostgreSQL",
        hint="available families: " + ", ".join(sorted(known, key=_by_number)),
    )


def _by_number(name: str) -> tuple[str, int]:
    letters = name.rstrip("0123456789")
    return letters, int(name[len(letters) :] or 0)
