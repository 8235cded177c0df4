"""The decoder of test_decoding's messages: lines of text, passed through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rdsrepl.tail.model import DecodedBatch, TableFilter
from rdsrepl.tail.timelines import Timelines
from rdsrepl.tail.xlogdata import MALFORMED, PAYLOAD, end_of_commit, malformed, start_lsn
from rdsrepl.text.escapes import shown

_ENDS: Final = (b"COMMIT", b"PREPARE TRANSACTION", b"ROLLBACK PREPARED")
_TABLE: Final = re.compile(r'table ("(?:[^"]|"")*"|[^".]+)\.("(?:[^"]|"")*"|[^":]+): (\w+)')
_COLOURS: Final = {"INSERT": "32", "UPDATE": "33", "DELETE": "31", "TRUNCATE": "35"}


class TestDecodingDecoder:
    """Passes lines through; PRETTY escapes them for a terminal, COLOUR colours their verbs."""

    __test__ = False  # pytest must not collect this class

    def __init__(
        self, tables: TableFilter, *, until_lsn: int | None = None, pretty: bool = False, colour: bool = False
    ) -> None:
        self._tables = tables
        self._until = until_lsn
        self._pretty = pretty
        self._colour = colour
        self._open = False

    def reset(self, timelines: Timelines) -> None:
        """Start a new connection."""
        self._open = False

    def feed(self, messages: Sequence[bytes]) -> DecodedBatch:
        """Pass messages through."""
        lines: list[bytes] = []
        commits: list[tuple[int, int]] = []
        changes, committed_lines, reached_until, error = 0, 0, False, None
        m = b""
        try:
            for m in messages:
                payload = m[PAYLOAD:]
                if payload.startswith(_ENDS):
                    commit_end = end_of_commit(m)
                    commits.append((commit_end, changes))
                    committed_lines = len(lines) + 2
                    self._open = False
                    if self._until is not None and commit_end >= self._until:
                        reached_until = True
                elif payload.startswith(b"BEGIN"):
                    if self._open:
                        raise ValueError("a transaction begins within another one")
                    if self._until is not None and start_lsn(m) >= self._until:
                        reached_until = True
                        break
                    self._open = True
                elif not payload:
                    raise ValueError("it is empty")
                else:
                    if self._tables and not self._wanted(payload):
                        continue
                    changes += 1
                lines += [self._painted(payload) if self._pretty else payload, b"\n"]
                if reached_until:
                    break
        except MALFORMED as exc:
            error = malformed("test_decoding", m, None, exc)
        return DecodedBatch(lines, changes, commits, self._open, reached_until, error, committed_lines)

    def _wanted(self, payload: bytes) -> bool:
        match = _TABLE.match(payload.decode("utf-8", "surrogateescape"))
        return match is None or self._tables.wants(_bare(match[1]), _bare(match[2]))

    def _painted(self, payload: bytes) -> bytes:
        text = shown(payload.decode("utf-8", "surrogateescape"))
        if not self._colour:
            return text.encode()
        match = _TABLE.match(text)
        if match is None or match[3] not in _COLOURS:
            return f"\x1b[2m{text}\x1b[0m".encode("utf-8", "surrogateescape")
        rest = text[match.end() :]
        coloured = f"\x1b[{_COLOURS[match[3]]}m{match[3]}\x1b[0m \x1b[1m{match[1]}.{match[2]}\x1b[0m{rest}"
        return coloured.encode("utf-8", "surrogateescape")


def _bare(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
