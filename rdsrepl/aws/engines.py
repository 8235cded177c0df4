"""Engine versions, and the parameter group family each belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from rdsrepl.aws import session
from rdsrepl.config import Aws
from rdsrepl.errors import BadValue

ENGINES = ("postgres", "aurora-postgresql")


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """One version AWS offers: ``postgres``, ``16.4``, ``postgres16``."""

    engine: str
    version: str
    family: str


def ls(aws: Aws, engine: str | None = None) -> tuple[EngineVersion, ...]:
    """Return the PostgreSQL versions AWS offers in the region (DescribeDBEngineVersions).

    Raises:
        Error: AWS refused.
    """
    found = []
    for name in (engine,) if engine else ENGINES:
        rows = session.pages(aws, "rds", "DescribeDBEngineVersions", "DBEngineVersions", {"Engine": name})
        found += [EngineVersion(name, row["EngineVersion"], row["DBParameterGroupFamily"]) for row in rows]
    return tuple(found)


def family(aws: Aws, engine: str, version: str) -> str:
    """Return the family a version's parameter groups have: ``aurora-postgresql16``.

    Raises:
        BadValue: AWS knows no such version.
    """
    request = {"Engine": engine, "EngineVersion": version, "IncludeAll": True}
    for row in session.pages(aws, "rds", "DescribeDBEngineVersions", "DBEngineVersions", request):
        return str(row["DBParameterGroupFamily"])
    raise BadValue(
        f"AWS knows no {engine} version {version}",
        hint=f"versions there are: aws rds describe-db-engine-versions --engine {engine}",
    )


def check_family(aws: Aws, name: str) -> str:
    """Return NAME if it is a family of PostgreSQL.

    Raises:
        BadValue: it is none; the message names those there are.
    """
    known = {version.family for version in ls(aws)}
    if name in known:
        return name
    raise BadValue(
        f"no PostgreSQL parameter group family {name!r}",
        hint="families there are: " + ", ".join(sorted(known, key=_by_number)),
    )


def _by_number(name: str) -> tuple[str, int]:
    letters = name.rstrip("0123456789")
    return letters, int(name[len(letters) :] or 0)
