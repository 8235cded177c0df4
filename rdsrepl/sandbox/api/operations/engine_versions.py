"""The RDS operation that describes the engine versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rdsrepl.sandbox.api import paging
from rdsrepl.sandbox.api.engine_catalog import EngineVersion, find, versions
from rdsrepl.sandbox.api.parameter_catalog import Engine
from rdsrepl.sandbox.api.service import Service, operation
from rdsrepl.sandbox.api.types import Parameters, Result

_DESCRIPTIONS: Final[Mapping[Engine, tuple[str, str]]] = {
    "postgres": ("PostgreSQL", "PostgreSQL {}"),
    "aurora-postgresql": ("Aurora (PostgreSQL)", "Aurora PostgreSQL (compatible with PostgreSQL {})"),
}


@operation("DescribeDBEngineVersions")
def describe_engine_versions(service: Service, p: Parameters) -> Result:
    """Return the releases that match the request."""
    suffix = service.consistency.switches.version_suffix
    wanted = p["EngineVersion"].removesuffix(suffix) if "EngineVersion" in p else None
    chosen: dict[str, Result] = {}
    for release in versions():
        fields = {
            "engine": release.engine,
            "engine-version": release.version,
            "db-parameter-group-family": release.family,
            "engine-mode": "provisioned",
            "status": "available",
        }
        if (
            p.get("Engine", release.engine) == release.engine
            and wanted in (None, release.version, str(release.major))
            and p.get("DBParameterGroupFamily", release.family) == release.family
            and (not p.get("DefaultOnly") or release == find(release.engine, wanted))
            and paging.matches_filters(p, fields)
        ):
            chosen[f"{release.engine} {release.number[0]:03} {release.number[1]:03}"] = _version_result(
                service, release
            )
    page, marker = paging.page(chosen, p)
    return {"DBEngineVersions": page, "Marker": marker}


def _version_result(service: Service, release: EngineVersion) -> Result:
    engine, version = _DESCRIPTIONS[release.engine]
    targets = (other for other in versions() if other.engine == release.engine and other.number > release.number)
    return {
        "Engine": release.engine,
        "MajorEngineVersion": str(release.major),
        "EngineVersion": f"{release.version}{service.consistency.switches.version_suffix}",
        "DBParameterGroupFamily": release.family,
        "DBEngineDescription": engine,
        "DBEngineVersionDescription": version.format(release.version),
        "DBEngineVersionArn": f"arn:aws:rds:{service.region}::db-engine-version:{release.engine}/{release.version}",
        "ValidUpgradeTarget": [
            {
                "Engine": target.engine,
                "EngineVersion": target.version,
                "Description": version.format(target.version),
                "AutoUpgrade": False,
                "IsMajorVersionUpgrade": target.major > release.major,
            }
            for target in targets
        ],
        "ExportableLogTypes": ["postgresql", "upgrade"] if release.engine == "postgres" else ["postgresql"],
        "SupportsLogExportsToCloudwatchLogs": True,
        "SupportsReadReplica": release.engine == "postgres",
        "SupportedEngineModes": ["provisioned"] if release.engine == "aurora-postgresql" else [],
        "SupportedFeatureNames": ["s3Import", "s3Export", "Lambda"],
        "Status": "available",
        "SupportsParallelQuery": False,
        "SupportsGlobalDatabases": release.engine == "aurora-postgresql",
        "SupportedCACertificateIdentifiers": ["rds-ca-ecc384-g1", "rds-ca-rsa4096-g1", "rds-ca-rsa2048-g1"],
    }
