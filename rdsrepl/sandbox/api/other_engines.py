"""Clusters and instances of other engines, which describe calls of RDS return as well; they have no servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from rdsrepl.sandbox.api.service import Service
    from rdsrepl.sandbox.api.types import Result

_VERSIONS: Final = {
    "mysql": "8.4.5",
    "mariadb": "11.4.5",
    "docdb": "5.0.0",
    "neptune": "1.4.5.1",
    "aurora-mysql": "8.0.mysql_aurora.3.08.2",
}
_OF_CLUSTERS: Final = ("docdb", "neptune", "aurora-mysql")
_PORTS: Final = {"docdb": 27017, "neptune": 8182}


def describe_all(service: Service, kind: Literal["cluster", "instance"]) -> dict[str, Result]:
    """Return their descriptions, by identifier: ``other-mysql``; empty while the switch is off."""
    if not service.consistency.switches.other_engines:
        return {}
    make = _cluster if kind == "cluster" else _instance
    engines = _OF_CLUSTERS if kind == "cluster" else tuple(_VERSIONS)
    return {f"other-{engine}": make(service, f"other-{engine}", engine) for engine in engines}


def _cluster(service: Service, identifier: str, engine: str) -> Result:
    return {
        "DBClusterIdentifier": identifier,
        "DBClusterArn": service.arn("cluster", identifier),
        "DbClusterResourceId": f"cluster-{engine.upper()}",
        "Engine": engine,
        "EngineVersion": _VERSIONS[engine],
        "Status": "available",
        "Endpoint": f"{identifier}.cluster-abcdefghijkl.{service.region}.rds.amazonaws.com",
        "Port": _PORTS.get(engine, 3306),
        "DBClusterMembers": [],
    }


def _instance(service: Service, identifier: str, engine: str) -> Result:
    return {
        "DBInstanceIdentifier": identifier,
        "DBInstanceArn": service.arn("db", identifier),
        "DbiResourceId": f"db-{engine.upper()}",
        "DBInstanceClass": "db.r6g.large",
        "DBInstanceStatus": "available",
        "Engine": engine,
        "EngineVersion": _VERSIONS[engine],
        "Endpoint": {
            "Address": f"{identifier}.abcdefghijkl.{service.region}.rds.amazonaws.com",
            "Port": _PORTS.get(engine, 3306),
        },
        "DBClusterIdentifier": identifier if engine in _OF_CLUSTERS else None,
    }
