"""Pass the messages of wal2json through: the format ``raw``, and ``wal2json`` from this plugin."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from rdsrepl.errors import MalformedMessage
from rdsrepl.tail.decoders.encodings import Decode, utf8
from rdsrepl.tail.model import DecodedBatch, TableFilter
from rdsrepl.tail.timelines import Timelines
from rdsrepl.tail.xlogdata import MALFORMED, PAYLOAD, end_of_commit, malformed, start_lsn

# {"action":"C" — the action's letter, counted from the start of the XLogData message.
_ACTION_AT: Final = PAYLOAD + len('{"action":"')
_BEGIN, _COMMIT, _MESSAGE = ord("B"), ord("C"), ord("M")
_TABLE: Final = re.compile(rb'"schema":("(?:[^"\\]|\\.)*"),"table":("(?:[^"\\]|\\.)*")')


class RawWal2json:
    """Passes version 2 through, each message on a line."""

    def __init__(
        self,
        tables: TableFilter,
        *,
        decode: Decode,
        as_utf8: bool,
        until_lsn: int | None = None,
    ) -> None:
        """Make a decoder.

        Args:
            tables: which tables to stream.
            decode: from the database's encoding, in which the plugin prints.
            as_utf8: write UTF-8 instead of the plugin's own bytes.
            until_lsn: stop before the first transaction whose commit record starts there or later.
        """
        self._tables = tables
        self._decode = decode
        self._as_utf8 = as_utf8 and decode is not utf8
        self._until = until_lsn
        self._open = False

    def reset(self, timelines: Timelines) -> None:
        """Start a new connection."""
        self._open = False

    def feed(self, messages: Sequence[bytes]) -> DecodedBatch:
        """Pass messages through; only the letter of the action is parsed."""
        lines: list[bytes] = []
        append = lines.append
        commits: list[tuple[int, int]] = []
        markers, committed, reached_until, error = 0, 0, False, None
        is_open, until, filtered = self._open, self._until, bool(self._tables)
        m = b""
        try:
            for m in messages:
                action = m[_ACTION_AT]
                if action == _COMMIT:
                    if not is_open:
                        raise ValueError("it ends a transaction that did not begin")
                    commit_end = end_of_commit(m)
                    commits.append((commit_end, len(lines) - markers))
                    is_open = False
                    markers += 1
                    committed = len(lines) + 1
                    if until is not None and commit_end >= until:
                        append(m[PAYLOAD:])
                        reached_until = True
                        break
                elif action == _BEGIN:
                    if is_open:
                        raise ValueError("a transaction begins within another one")
                    if until is not None and start_lsn(m) >= until:
                        reached_until = True
                        break
                    is_open = True
                    markers += 1
                elif not is_open and action != _MESSAGE:
                    raise ValueError("a change outside of a transaction")
                elif filtered and not self._wanted(m):
                    continue
                append(m[PAYLOAD:])
        except MALFORMED as exc:
            error = malformed_change(m, exc)
        self._open = is_open
        if not lines:
            return DecodedBatch(lines, 0, commits, is_open, reached_until, error)
        changes = len(lines) - markers
        parts = [self._text(part) for part in (lines[:committed], lines[committed:]) if part]
        return DecodedBatch(parts, changes, commits, is_open, reached_until, error, 1 if committed else 0)

    def _text(self, lines: list[bytes]) -> bytes:
        lines.append(b"")  # so that one join gives every message its newline
        text = b"\n".join(lines)
        return self._decode(text).encode("utf-8", "surrogateescape") if self._as_utf8 else text

    def _wanted(self, m: bytes) -> bool:
        event = json.loads(self._decode(m[PAYLOAD:]))
        return "table" not in event or self._tables.wants(event["schema"], event["table"])


class RawWal2jsonV1:
    """Passes version 1 through: every message is a whole transaction."""

    def __init__(self, *, until_lsn: int | None = None) -> None:
        self._until = until_lsn

    def reset(self, timelines: Timelines) -> None:
        """Start a new connection."""

    def feed(self, messages: Sequence[bytes]) -> DecodedBatch:
        """Pass messages through."""
        lines: list[bytes] = []
        commits: list[tuple[int, int]] = []
        committed_lines, reached_until, error = 0, False, None
        m = b""
        try:
            for m in messages:
                commit_end = end_of_commit(m)
                lines += [m[PAYLOAD:], b"\n"]
                commits.append((commit_end, len(lines) // 2))
                committed_lines = len(lines)
                if self._until is not None and commit_end >= self._until:
                    reached_until = True
                    break
        except MALFORMED as exc:
            error = malformed_change(m, exc)
        return DecodedBatch(lines, len(lines) // 2, commits, False, reached_until, error, committed_lines)


def malformed_change(m: bytes, exc: Exception) -> MalformedMessage:
    """Return the error for a message that could not be read, with the table that it names."""
    names = _TABLE.search(m, PAYLOAD)
    relation = None if names is None else b".".join(names.groups()).decode("utf-8", "backslashreplace")
    return malformed("wal2json", m, relation, exc)
