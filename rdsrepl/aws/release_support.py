"""Which releases of RDS and Aurora support logical replication (user guides, "logical replication"; release notes)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from rdsrepl.aws.engines import Topology

# The first release for Multi-AZ DB clusters by major version, as (minor, revision).
_MULTI_AZ_SINCE: Final = {14: (8, 2), 15: (3, 2)}
_INSTANCE_SINCE: Final = (10, 4)
_VERSION: Final = re.compile(r"([0-9]{1,4})(?:\.([0-9]{1,9}))?((?:[.\-+_ ]|(?<=[0-9])[a-z]).{0,200})?", re.DOTALL)
_REVISION: Final = re.compile(r"(?:^|[.-])[Rr]([0-9]{1,9})(?![0-9A-Za-z])")


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """A release of an engine: ``16.4``, ``15.3-R2``; the first release of a version has revision 1.

    Other suffixes are ignored: ``13.23-rds.20260224`` (Extended Support) is 13.23, and ``16.9-limitless`` is 16.9.
    """

    major: int
    minor: int
    revision: int = 1

    @classmethod
    def parse(cls, text: str) -> Release | None:
        """Return the release of a version with or without a suffix; None if TEXT is not a version."""
        match = _VERSION.fullmatch(text.strip())
        if match is None:
            return None
        revision = _REVISION.search(match[3] or "")
        return cls(int(match[1]), int(match[2] or 0), int(revision[1]) if revision else 1)


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a release supports logical replication, and since which release.

    Attributes:
        supported: None if the version is unknown.
        words: the same as text.
    """

    supported: bool | None
    words: str


def logical_replication(topology: Topology, version: str) -> Support:
    """Return whether a release of RDS or Aurora supports logical replication."""
    release = Release.parse(version)
    if topology == "aurora":
        return Support(True, f"supported by Aurora PostgreSQL {version}")
    if release is None:
        return Support(None, f"unknown: version {version} cannot be read")
    if topology == "instance":
        supported = (release.major, release.minor) >= _INSTANCE_SINCE
        return Support(supported, "supported" if supported else "not supported before 10.4: upgrade")
    since = _MULTI_AZ_SINCE.get(release.major)
    if since is None:
        supported, first = release.major >= 16, "14.8-R2 or 15.3-R2"
    else:
        supported, first = (release.minor, release.revision) >= since, f"{release.major}.{since[0]}-R{since[1]}"
    return Support(supported, "supported" if supported else f"not supported on Multi-AZ DB clusters before {first}")
