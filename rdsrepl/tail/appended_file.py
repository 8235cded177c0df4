"""What the regular file already contains that the output is appended to, so that no change is written to it twice.

A killed run has written more than it has confirmed, and the server sends that again. The end of the file tells which
line was written last: a line's identity (``model.Transaction``) is the same each time the server sends its change.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rdsrepl.errors import BadValue, Refused
from rdsrepl.lsn import Lsn
from rdsrepl.tail.model import DecodedBatch
from rdsrepl.tail.timelines import Timelines

_BLOCK_BYTES: Final = 1 << 20
# How deep the fields of an identity are: in ``source`` of ``value`` of an event of debezium with its key.
_IDENTITY_DEPTH: Final = 3
_NESTING: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True, slots=True, order=True)
class LineIdentity:
    """The identity of a line; identities are ordered as the lines of a stream are."""

    timeline: int
    commit_lsn: int
    seq: int

    def is_in(self, timelines: Timelines) -> bool:
        """Return whether a server with these timelines has the change: it was written before the server's fork."""
        written_on = timelines.of_start if self.seq else timelines.of_end
        return written_on(self.commit_lsn) == self.timeline

    def __str__(self) -> str:
        return f"{Lsn(self.commit_lsn)}, number {self.seq}, of timeline {self.timeline}"


#: returns the identity of a line; None if it has none.
Identify = Callable[[str | bytes], LineIdentity | None]


def identity_in_json(line: str | bytes) -> LineIdentity | None:
    """Return the identity of a line in the format ``json``."""
    return _identity(_object(line))


def identity_in_debezium(line: str | bytes) -> LineIdentity | None:
    """Return the identity of a line in the format ``debezium``; a tombstone has none."""
    event = _object(line)
    if isinstance(event.get("value"), dict) and "key" in event:
        event = event["value"]
    source = event.get("source")
    return _identity(source) if isinstance(source, dict) else None


def _object(line: str | bytes) -> dict[str, Any]:
    try:
        try:
            found = json.loads(line)
        except RecursionError:  # a value of the row is nested deeper than the parser goes
            found = json.loads(_without_deep_values(line))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _without_deep_values(line: str | bytes) -> str:
    """Return a JSON text with null for each object and array that is nested deeper than any field of an identity."""
    text = line if isinstance(line, str) else line.decode("utf-8", "replace")
    parts: list[str] = []
    depth = position = 0
    for found in _NESTING.finditer(text):
        mark = found.group()
        if mark in "[{":
            depth += 1
            if depth == _IDENTITY_DEPTH + 1:
                parts.append(text[position : found.start()])
        elif mark in "]}":
            if depth == _IDENTITY_DEPTH + 1:
                parts.append("null")
                position = found.end()
            depth -= 1
    return "".join((*parts, text[position:]))


def _identity(fields: dict[str, Any]) -> LineIdentity | None:
    try:
        lsn = fields["commit_lsn"]
        return LineIdentity(
            int(fields["timeline"]), int(Lsn.parse(lsn)) if isinstance(lsn, str) else int(lsn), int(fields["seq"])
        )
    except (KeyError, TypeError, ValueError, BadValue):
        return None


class AppendedFile:
    """Leaves out of the stream what a regular file has already, at the beginning of each connection.

    Attributes:
        is_verified: whether the stream is known to be the file's; before that nothing may be confirmed.
        left_out: how many lines were left out so far.
    """

    def __init__(self, fd: int, identify: Identify, slot_name: str) -> None:
        """Prepare to compare.

        Args:
            fd: the file; each line in it ends with a newline.
            identify: returns the identity of a line in the format of the run.
            slot_name: the slot, for the error.
        """
        self._fd = fd
        self._identify = identify
        self._slot_name = slot_name
        self._last: LineIdentity | None = None
        # How many lines without an identity follow the last line that has one: the tombstone of a delete event.
        self._tombstones = 0
        self._previous: LineIdentity | None = None
        self.is_verified = True
        self.left_out = 0

    @property
    def is_active(self) -> bool:
        """Whether the next line may be one that the file has."""
        return self._last is not None

    def connected(self, timelines: Timelines, start_lsn: int, server_lsn: int) -> bool:
        """Read the end of the file, for a connection whose stream starts at a position.

        Args:
            timelines: of the server; what was written after its fork does not exist there.
            start_lsn: the server sends the transactions whose commit records begin there or later.
            server_lsn: the end of the server's WAL.

        Returns:
            Whether the end of the file could be read as lines of the format.

        Raises:
            Refused: the file ends with a change that is newer than the server.
        """
        self._last, self._previous, self._tombstones = None, None, 0
        is_known = self._find_last(timelines)
        # Where one record ends another may begin: a commit at the start itself need not come again.
        self.is_verified = self._last is None or self._last.commit_lsn <= start_lsn
        if self._last is not None and self._last.commit_lsn > server_lsn:
            self._require_verified(self._last)
        return is_known

    def _find_last(self, timelines: Timelines) -> bool:
        """Find the last line of the file that the server's history has; return whether the end of the file is known."""
        try:
            with contextlib.closing(_lines_from_the_end(self._fd)) as lines:
                for line in lines:
                    identity = self._identify(line)
                    if identity is not None and identity.is_in(timelines):
                        self._last = identity
                        return True
                    self._tombstones = self._tombstones + 1 if identity is None else 0
                    if self._tombstones > 1:
                        return False
        except OSError:
            return False
        return True

    def without_repeats(self, batch: DecodedBatch) -> DecodedBatch:
        """Return a batch of at most one change without the lines that the file has.

        Raises:
            Refused: the stream is past the last line of the file, and that line did not come.
        """
        # The last line may be one of a place where no line comes this time.
        if self._last is not None and (self._last.timeline, Lsn(self._last.commit_lsn)) in [
            (timeline, Lsn.parse(lsn)) for timeline, lsn in batch.own_messages
        ]:
            self.is_verified = True
        kept: list[Any] = []
        for line in (line for text in batch.lines for line in _split(text)):
            if self._last is not None and self._has(line, self._last):
                self.left_out += 1
            else:
                kept.append(line)
        if kept:
            return replace(batch, lines=kept)
        return replace(batch, lines=[], changes=0, commits=[(end_lsn, 0) for end_lsn, _ in batch.commits])

    def reached(self, lsn: int) -> None:
        """Record that the server has sent everything that was committed before a position.

        Raises:
            Refused: the last line of the file is before it, and did not come.
        """
        if self._last is not None and lsn > self._last.commit_lsn:
            self._require_verified(self._last)

    def _has(self, line: str | bytes, last: LineIdentity) -> bool:
        identity = self._identify(line)
        if identity is None:
            if self._previous == last:
                self._tombstones -= 1
                return self._tombstones >= 0
            return self._previous is not None
        if identity > last:
            self._require_verified(last)
            self._last = None
            return False
        self._previous = identity
        self.is_verified = self.is_verified or identity == last
        return True

    def _require_verified(self, last: LineIdentity) -> None:
        if self.is_verified:
            return
        raise Refused(
            f"the output file ends with the change {last}, which slot {self._slot_name} does not send: the file is of "
            "another slot or server, or was written with other publications or options",
            hint="append to another file, or write changes again that the file may have: --at-least-once",
        )


def _split(text: str | bytes) -> list[Any]:
    """Return the lines of a text, each with its newline; other characters do not end a line."""
    if isinstance(text, bytes):
        return [line + b"\n" for line in text.split(b"\n")[:-1]]
    return [line + "\n" for line in text.split("\n")[:-1]]


def appended_file(fd: int, identify: Identify, slot_name: str) -> AppendedFile | None:
    """Return what leaves repeats out of a file.

    Returns:
        None if the descriptor is not a regular file that is appended to, or cannot be read through its name.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or os.lseek(fd, 0, os.SEEK_CUR) not in (0, status.st_size):
        return None
    if not os.access(f"/dev/fd/{fd}", os.R_OK):
        return None
    return AppendedFile(fd, identify, slot_name)


def _lines_from_the_end(fd: int) -> Generator[bytes, None, None]:
    """Yield the lines of a file, the last first."""
    with Path(f"/dev/fd/{fd}").open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        rest: Sequence[bytes] = ()  # the beginning of a line whose end was read, as blocks from the last to the first
        while position:
            size = min(_BLOCK_BYTES, position)
            position -= size
            file.seek(position)
            first, *lines = file.read(size).split(b"\n")
            if lines:
                lines[-1] += b"".join(reversed(rest))
                yield from (line for line in reversed(lines) if line)
                rest = (first,)
            else:
                rest = (*rest, first)
        if line := b"".join(reversed(rest)):
            yield line
