"""When an output file is closed, and the name that it then has. Pure except for listing a directory.

``orders.jsonl`` becomes ``orders.00000001-0000005F-0C501098.jsonl``: the timeline and the two halves of the LSN at
which the file begins, with digits as in the names of WAL files. Every change in it was committed there or later, and
before the position in the next name. The order of the names is the order of the stream, also after a failover.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a file is closed: at the first end of a transaction after one of these.

    Attributes:
        size: the file has this many bytes; None is never.
        seconds: its first change was written this long ago; None is never.
    """

    size: int | None = None
    seconds: float | None = None

    def is_due(self, size: int, age_seconds: float) -> bool:
        """Return whether a file of this size and age is closed; an empty one never is."""
        if not size:
            return False
        return (self.size is not None and size >= self.size) or (
            self.seconds is not None and age_seconds >= self.seconds
        )


def closed_path(path: Path, timeline: int, lsn: int) -> Path:
    """Return the name of a file after it was closed.

    Args:
        path: its name before.
        timeline: of the position at which it begins.
        lsn: that position.
    """
    return path.with_name(f"{path.stem}.{timeline:08X}-{lsn >> 32:08X}-{lsn & 0xFFFFFFFF:08X}{path.suffix}")


def closed_files(path: Path) -> list[Path]:
    """Return the files that were closed and not compressed, in the order of the stream.

    Raises:
        OSError: the directory cannot be read.
    """
    pattern = re.compile(rf"{re.escape(path.stem)}\.[0-9A-F]{{8}}(-[0-9A-F]{{8}}){{2}}{re.escape(path.suffix)}")
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if pattern.fullmatch(entry.name) and entry.is_file()]
    return [path.with_name(name) for name in sorted(names)]
