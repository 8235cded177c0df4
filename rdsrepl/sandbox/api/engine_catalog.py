"""The engine versions, parameter group families and instance classes that the sandbox knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from rdsrepl.sandbox.api import parameter_catalog
from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.parameter_catalog import Engine, EngineParameter
from rdsrepl.sandbox.api.types import ResourceKind
from rdsrepl.sandbox.servers import binaries

_GIB: Final = 1024**3

# For each major version an old release, which lacks some features, and recent ones.
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


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """One release of an engine.

    Attributes:
        number: ``(16, 14)``.
    """

    engine: Engine
    number: tuple[int, int]

    @property
    def version(self) -> str:
        """The version as RDS writes it: ``16.14``."""
        return f"{self.number[0]}.{self.number[1]}"

    @property
    def major(self) -> int:
        """The major version."""
        return self.number[0]

    @property
    def family(self) -> str:
        """The family of its parameter groups: ``postgres16``."""
        return f"{self.engine}{self.major}"


@dataclass(frozen=True, slots=True)
class InstanceClass:
    """An instance class.

    Attributes:
        memory_bytes: the nominal memory; on RDS, formulas use a little less.
        clusters: whether Multi-AZ DB clusters can use it.
        aurora: whether Aurora can use it.
    """

    name: str
    vcpu: int
    memory_bytes: int
    clusters: bool
    aurora: bool


@cache
def versions() -> tuple[EngineVersion, ...]:
    """Return every release, oldest first, including those of the installed PostgreSQL programs."""
    installed = {
        (programs.version[0], programs.version[1])
        for programs in (*binaries.installed(), *binaries.from_wheel())
        if programs.major in parameter_catalog.MAJORS and len(programs.version) > 1
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
    """Return a release: without a minor version the newest one, without a version the default of the engine.

    Raises:
        Fault: the engine or the version does not exist.
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
    """Return the family of the parameter groups of a release: ``postgres16``.

    Raises:
        Fault: the engine or the version does not exist.
    """
    return find(engine, version).family


@cache
def families() -> Mapping[str, tuple[Engine, int]]:
    """Return every family, with its engine and major version."""
    return MappingProxyType(
        {f"{engine}{major}": (engine, major) for engine in _MINORS for major in parameter_catalog.MAJORS}
    )


def defaults(family: str, kind: ResourceKind) -> Mapping[str, EngineParameter]:
    """Return the parameters of the groups of a family, by name and in that order.

    Raises:
        Fault: the family does not exist.
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
# GiB per vCPU, by the first letter of the generation.
_MEMORY: Final = {"c": 2, "m": 4, "r": 8, "x": 32}
_WITHOUT_DISKS: Final = ("m5", "m6g", "m6i", "m7g", "m7i", "r5", "r6g", "r6i", "r7g", "r7i", "r8g")
_WITH_DISKS: Final = ("c6gd", "m5d", "m6gd", "m6id", "m6idn", "r5d", "r6gd", "r6id", "r6idn", "x2iedn")


@cache
def instance_classes() -> Mapping[str, InstanceClass]:
    """Return every instance class by its name."""
    made: list[InstanceClass] = []
    for generation in ("t3", "t4g"):
        for size, (vcpu, gib) in _SMALL.items():
            aurora = size in ("medium", "large")
            made.append(InstanceClass(f"db.{generation}.{size}", vcpu, gib * _GIB, False, aurora))
    for generation in (*_WITHOUT_DISKS, *_WITH_DISKS):
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
        Fault: the class does not exist.
    """
    known = instance_classes().get(name)
    if known is None:
        raise fault("InvalidParameterValue", f"Invalid DB Instance class: {name}")
    return known
