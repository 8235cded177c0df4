"""Passes the messages of pgoutput through (manual, section 55.9): the format ``raw``."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final

from rdsrepl.tail.model import DecodedBatch
from rdsrepl.tail.timelines import Timelines
from rdsrepl.tail.xlogdata import MALFORMED, PAYLOAD, malformed, require_end

_AT: Final = PAYLOAD
_BEGIN: Final = Struct(">QqI").unpack_from
_COMMIT: Final = Struct(">BQQ").unpack_from


class RawPgoutput:
    """pgoutput's own bytes, each message followed by a newline, as ``pg_recvlogical`` writes them."""

    def __init__(self, *, until_lsn: int | None = None) -> None:
        self._until = until_lsn
        self._open = False

    def reset(self, timelines: Timelines) -> None:
        """Start a new connection."""
        self._open = False

    def feed(self, messages: Sequence[bytes]) -> DecodedBatch:
        """Pass messages through; only the messages of transactions are parsed."""
        lines: list[bytes] = []
        commits: list[tuple[int, int]] = []
        changes, committed_lines, reached_until, error = 0, 0, False, None
        m = b""
        try:
            for m in messages:
                kind = m[_AT]
                if kind == 0x42 or kind == 0x62:  # Begin, Begin Prepare
                    if self._open:
                        raise ValueError("a transaction begins within another one")
                    if kind == 0x42 and self._until is not None and _BEGIN(m, _AT + 1)[0] >= self._until:
                        reached_until = True
                        break
                    self._open = True
                elif kind in (0x43, 0x50, 0x4B):  # Commit, Prepare, Commit Prepared
                    if self._open is (kind == 0x4B):
                        raise ValueError("it ends a transaction that did not begin")
                    end_lsn = _COMMIT(m, _AT + 1)[2]
                    require_end(m, end_lsn)
                    commits.append((end_lsn, changes))
                    committed_lines = len(lines) + 2
                    self._open = False
                elif kind != 0x52 and kind != 0x59:
                    if not self._open and kind in b"IUDT":
                        raise ValueError("a change outside of a transaction")
                    if kind not in b"IUDTMOr":
                        raise ValueError(f"{chr(kind)!r} is not a message type of the protocol")
                    changes += 1
                lines += [m[_AT:], b"\n"]
        except MALFORMED as exc:
            error = malformed("pgoutput", m, None, exc)
        return DecodedBatch(lines, changes, commits, self._open, reached_until, error, committed_lines)
