"""Which releases of RDS and Aurora can do logical replication (user guides, "logical replication"; release notes)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from rdsrepl.errors import BadValue

Kind = Literal["instance", "multi_az_cluster", "aurora"]

# Multi-AZ DB clusters learnt it late: by major version the first release as (minor, revision).
_MULTI_AZ_SINCE: Final = {14: (8, 2), 15: (3, 2)}
_INSTANCE_SINCE: Final = (10, 4)


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """A release as AWS writes it: ``16.4``, ``15.3-R2``; the revision of a first release is 1."""

    major: int
    minor: int
    revision: int = 1

    @classmethod
    def parse(cls, text: str) -> Release:
        """Read ``15.3``, ``15.3-R2``, ``15.3.R2`` or ``16``.

        Raises:
            BadValue: TEXT is none of these.
        """
        match = re.fullmatch(r"([0-9]{1,4})(?:\.([0-9]{1,9}))?(?:\.[0-9]+)?(?:[.-][Rr]([0-9]{1,9}))?", text.strip())
        if match is None:
            raise BadValue(f"{text!r} is no engine version", hint="for example 16.4 or 15.3-R2")
        return cls(int(match[1]), int(match[2] or 0), int(match[3] or 1))


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a release can do logical replication, and since which one.

    Attributes:
        supported: whether it can.
        words: the same for people.
    """

    supported: bool
    words: str


def logical_replication(kind: Kind, version: str) -> Support:
    """Say whether a release of RDS or Aurora can do logical replication.

    Raises:
        BadValue: the version cannot be read.
    """
    release = Release.parse(version)
    if kind == "aurora":
        return Support(True, f"supported by Aurora PostgreSQL {version}")
    if kind == "instance":
        supported = (release.major, release.minor) >= _INSTANCE_SINCE
        return Support(supported, "supported" if supported else "not supported before 10.4: upgrade")
    since = _MULTI_AZ_SINCE.get(release.major)
    if since is None:
        supported, first = release.major >= 16, "14.8-R2 or 15.3-R2"
    else:
        supported, first = (release.minor, release.revision) >= since, f"{release.major}.{since[0]}-R{since[1]}"
    return Support(supported, "supported" if supported else f"not supported on Multi-AZ DB clusters before {first}")
