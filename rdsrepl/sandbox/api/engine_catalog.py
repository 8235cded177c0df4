"""Engine versions, parameter group families, instance classes, and the formulas that default values are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from rdsrepl.sandbox.api import paging, parameter_catalog
from rdsrepl.sandbox.api.faults import fault
from rdsrepl.sandbox.api.parameter_catalog import Engine, EngineParameter
from rdsrepl.sandbox.api.service import Kind, Parameters, Result, Service, operation
from rdsrepl.sandbox.servers import binaries

PORT: Final = 5432
_GIB: Final = 1024**3

# Of each major version an old release, below which something is missing, and recent ones.
_MINORS: Final[Mapping[Engine, Mapping[int, tuple[int, ...]]]] = {
    "postgres": {
        13: (7, 20, 22),
        14: (7, 17, 20),
        15: (2, 12, 19),
        16: (1, 8, 15),
        17: (1, 4, 11),
        18: (1, 6),
    },
    "aurora-postgresql": {
        13: (7, 20, 21),
        14: (6, 17, 20),
        15: (2, 12, 15),
        16: (1, 8, 11),
        17: (4, 7, 9),
        18: (1, 3),
    },
}
_DEFAULT_MAJOR: Final = 17
_DESCRIPTIONS: Final[Mapping[Engine, tuple[str, str]]] = {
    "postgres": ("PostgreSQL", "PostgreSQL {}"),
    "aurora-postgresql": ("Aurora (PostgreSQL)", "Aurora PostgreSQL (compatible with PostgreSQL {})"),
}


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """One release of an engine.

    Attributes:
        number: ``(16, 14)``.
        family: of its parameter groups: ``postgres16``.
    """

    engine: Engine
    number: tuple[int, int]

    @property
    def version(self) -> str:
        """As RDS writes it: ``16.14``."""
        return f"{self.number[0]}.{self.number[1]}"

    @property
    def major(self) -> int:
        """13 … 18."""
        return self.number[0]

    @property
    def family(self) -> str:
        """Of its parameter groups: ``postgres16``."""
        return f"{self.engine}{self.major}"


@dataclass(frozen=True, slots=True)
class InstanceClass:
    """An instance class.

    Attributes:
        memory_bytes: nominal; RDS's formulas see a little less, as it keeps some for itself.
        clusters: whether Multi-AZ DB clusters may have it.
        aurora: whether Aurora has it.
    """

    name: str
    vcpu: int
    memory_bytes: int
    clusters: bool
    aurora: bool


@cache
def versions() -> tuple[EngineVersion, ...]:
    """Return every release, oldest first; those of the PostgreSQL programs that are installed are among them."""
    installed = {
        (found.version[0], found.version[1])
        for found in (*binaries.machine(), *binaries.wheel())
        if found.major in parameter_catalog.MAJORS and len(found.version) > 1
    }
    made = {
        EngineVersion(engine, (major, minor))
        for engine, majors in _MINORS.items()
        for major, minors in majors.items()
        for minor in minors
    }
    made |= {EngineVersion("postgres", number) for number in installed}
    return tuple(sorted(made, key=lambda release: (release.engine, release.number)))


def find(engine: str, version: str | None = None) -> EngineVersion:
    """Return a release; without a minor version the newest of the major, without any the engine's default.

    Raises:
        Fault: there is no such engine, or no such version of it.
    """
    of_engine = [release for release in versions() if release.engine == engine]
    if not of_engine:
        raise fault("InvalidParameterValue", f"Invalid DB engine: {engine}")
    wanted = version if version is not None else str(_DEFAULT_MAJOR)
    for release in reversed(of_engine):
        if wanted in (release.version, str(release.major)):
            return release
    raise fault("InvalidParameterCombination", f"Cannot find version {version} for {engine}")


def family_of(engine: str, version: str) -> str:
    """Return the family of the parameter groups that a release takes: ``postgres16``.

    Raises:
        Fault: there is no such engine, or no such version of it.
    """
    return find(engine, version).family


@cache
def families() -> Mapping[str, tuple[Engine, int]]:
    """Return every family, with its engine and major version."""
    return MappingProxyType(
        {f"{engine}{major}": (engine, major) for engine in _MINORS for major in parameter_catalog.MAJORS}
    )


def defaults(family: str, kind: Kind) -> Mapping[str, EngineParameter]:
    """Return what a family's groups hold, by name and in its order.

    Raises:
        Fault: there is no such family.
    """
    known = families().get(family)
    if known is None:
        raise fault("InvalidParameterValue", f"ParameterGroupFamily {family} is not a valid parameter group family")
    return parameter_catalog.defaults(*known, kind)


_SIZES: Final = {"large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32, "12xlarge": 48, "16xlarge": 64}
_SMALL: Final = {
    "micro": (2, 1),
    "small": (2, 2),
    "medium": (2, 4),
    "large": (2, 8),
    "xlarge": (4, 16),
    "2xlarge": (8, 32),
}
# GiB for each vCPU, by the generation's letter.
_MEMORY: Final = {"c": 2, "m": 4, "r": 8, "x": 32}
_PLAIN: Final = ("m5", "m6g", "m6i", "m7g", "m7i", "r5", "r6g", "r6i", "r7g", "r7i", "r8g")
_WITH_DISKS: Final = ("c6gd", "m5d", "m6gd", "m6id", "m6idn", "r5d", "r6gd", "r6id", "r6idn", "x2iedn")


@cache
def instance_classes() -> Mapping[str, InstanceClass]:
    """Return every instance class by its name."""
    made: list[InstanceClass] = []
    for generation in ("t3", "t4g"):
        for size, (vcpu, gib) in _SMALL.items():
            aurora = size in ("medium", "large")
            made.append(InstanceClass(f"db.{generation}.{size}", vcpu, gib * _GIB, False, aurora))
    for generation in (*_PLAIN, *_WITH_DISKS):
        disks = generation in _WITH_DISKS
        for size, vcpu in _SIZES.items():
            memory = vcpu * _MEMORY[generation[0]] * _GIB
            aurora = generation[0] == "r" and not disks
            made.append(InstanceClass(f"db.{generation}.{size}", vcpu, memory, disks, aurora))
    made.append(InstanceClass("db.c6gd.medium", 1, 2 * _GIB, True, False))
    return MappingProxyType({one.name: one for one in sorted(made, key=lambda one: one.name)})


def instance_class(name: str) -> InstanceClass:
    """Return an instance class.

    Raises:
        Fault: there is none of that name.
    """
    found = instance_classes().get(name)
    if found is None:
        raise fault("InvalidParameterValue", f"Invalid DB Instance class: {name}")
    return found


# Formulas: operators work inside of the braces and outside: {DBInstanceVCPU*2}, {DBInstanceVCPU}*2.
_TOKEN: Final = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|([A-Za-z]+)|(\$?\{)|(.))", re.DOTALL)
_NAMES: Final = ("DBInstanceClassMemory", "DBInstanceVCPU", "EndPointPort")
_DEEPEST: Final = 20


def is_formula(value: str) -> bool:
    """Say whether a value is meant as a formula: it has a variable, or calls a function."""
    return bool(re.search(r"\{|^\s*(?:GREATEST|LEAST|SUM)\s*\(", value))


def evaluate(formula: str, vcpu: int, memory_bytes: int) -> str:
    """Return the value of a formula for an instance class; what is no formula is returned as it is.

    Divisions keep their fraction until the end, where the value is cut to a whole number.

    Raises:
        ValueError: it is no valid formula.
    """
    if not is_formula(formula):
        return formula
    values = dict(zip(_NAMES, (memory_bytes, vcpu, PORT), strict=True))
    try:
        return str(math.trunc(_Formula(formula, values).value()))
    except (ZeroDivisionError, OverflowError) as exc:
        raise ValueError(f"{formula}: {exc}") from None


class _Formula:
    """A parser by recursive descent that evaluates as it goes."""

    def __init__(self, text: str, values: Mapping[str, float]) -> None:
        self._text = text
        self._values = values
        self._tokens = [match.group().strip() for match in _TOKEN.finditer(text)]
        self._tokens = [token for token in self._tokens if token]
        self._at = 0
        self._depth = 0

    def value(self) -> float:
        result = self._sum()
        if self._at < len(self._tokens):
            raise self._wrong()
        return result

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise self._wrong()

    def _wrong(self) -> ValueError:
        return ValueError(f"{self._text}: no valid formula")

    def _sum(self) -> float:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._wrong()
        result = self._product()
        while self._peek() in ("+", "-"):
            result = result + self._product() if self._next() == "+" else result - self._product()
        self._depth -= 1
        return result

    def _product(self) -> float:
        result = self._one()
        while self._peek() in ("*", "/"):
            result = result * self._one() if self._next() == "*" else result / self._one()
        return result

    def _one(self) -> float:
        token = self._next()
        if token == "-":
            return -self._number(self._next())
        if token in ("{", "${", "("):
            result = self._sum()
            self._expect(")" if token == "(" else "}")
            return result
        if token in self._values:
            return self._values[token]
        if token.upper() in ("GREATEST", "LEAST", "SUM", "LOG"):
            return self._call(token.upper())
        return self._number(token)

    def _number(self, token: str) -> float:
        if not re.fullmatch(r"[\d.]+", token):
            raise self._wrong()
        return int(token) if token.isdigit() else float(token)

    def _call(self, name: str) -> float:
        self._expect("(")
        arguments = [self._sum()]
        while self._peek() == ",":
            self._next()
            arguments.append(self._sum())
        self._expect(")")
        if name == "LOG":
            # Of a class with less than the divisor it is negative, which GREATEST then bounds.
            return math.log2(arguments[0])
        if name == "GREATEST":
            return max(arguments)
        return min(arguments) if name == "LEAST" else sum(arguments)


@operation("DescribeDBEngineVersions")
def describe_engine_versions(service: Service, p: Parameters) -> Result:
    """Answer with the releases that were asked for."""
    suffix = service.consistency.delays.version_suffix
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
            and paging.passes(p, fields)
        ):
            chosen[f"{release.engine} {release.number[0]:03} {release.number[1]:03}"] = _described(service, release)
    page, marker = paging.page(chosen, p)
    return {"DBEngineVersions": page, "Marker": marker}


def _described(service: Service, release: EngineVersion) -> Result:
    engine, version = _DESCRIPTIONS[release.engine]
    targets = (other for other in versions() if other.engine == release.engine and other.number > release.number)
    return {
        "Engine": release.engine,
        "MajorEngineVersion": str(release.major),
        "EngineVersion": f"{release.version}{service.consistency.delays.version_suffix}",
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
