"""Fold the lines of a stream in the format ``json`` into the rows that they leave behind.

The rows are in a SQLite file, so a stream of any size fits. The result does not depend on the order of lines of
different keys, nor on lines that come again: a line counts only if its identity is greater than that of the last line
of its key, and a row only if it is greater than that of the last TRUNCATE of its table. A line ``r`` is the state of
its key as any other, also in the middle of a stream: its identity is that of the place where it stands.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn

_CREATE: Final = """
CREATE TABLE folded (tab TEXT, key TEXT, identity TEXT, committed TEXT, row TEXT, PRIMARY KEY (tab, key)) WITHOUT ROWID;
CREATE TABLE source (tab TEXT, key TEXT, row TEXT, PRIMARY KEY (tab, key)) WITHOUT ROWID;
"""
_LINES_PER_TRANSACTION: Final = 50_000


class Position(NamedTuple):
    """A place in the history of a server; positions are in its order."""

    timeline: int
    lsn: Lsn


@dataclass(frozen=True, slots=True)
class Folded:
    """What one call read: how many lines, and the position of the latest."""

    lines: int
    latest: Position


@dataclass(frozen=True, slots=True)
class Pair:
    """A key and its row on both sides.

    Attributes:
        key: the key as text.
        here: the JSON text of the source's row; None without one.
        there: the row of the stream; None without one.
        is_in_stream: whether the stream says anything about the key.
    """

    key: str
    here: str | None
    there: dict[str, Any] | None
    is_in_stream: bool


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a JSON text with all its digits."""

    text: str


def parsed(text: str | bytes) -> Any:
    """Return a JSON text as an object that equals another one if both have the same values, digit for digit."""
    return json.loads(text, parse_float=Number, parse_int=Number, parse_constant=Number)


def table_text(schema: str, name: str) -> str:
    """Return the names of a table as one text; names may have dots."""
    return f"{schema}\0{name}"


def key_text(key: Mapping[str, Any]) -> str:
    """Return a key as text, equal for equal keys."""
    return json.dumps(_marked(key), sort_keys=True)


class FoldedStream:
    """The rows that a stream leaves behind, and those of the source to compare them with.

    Attributes:
        latest: the position of the latest line.
    """

    def __init__(self, path: Path, *, in_one_order: bool) -> None:
        """Keep the rows in a new file.

        Args:
            path: the file.
            in_one_order: lines come in the order of the stream. Otherwise only those of each key do, and the value
                that a row had under another key is not known.
        """
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _CREATE)
        self._in_one_order = in_one_order
        self._truncated: dict[str, tuple[str, str]] = {}
        self._keys: dict[str, set[frozenset[str]]] = {}
        self.latest = Position(0, Lsn(0))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def keys(self, table: str) -> frozenset[frozenset[str]]:
        """Return the keys, as names of columns, that lines of a table had; more than one after its identity changed."""
        return frozenset(self._keys.get(table, ()))

    def fold(self, lines: Iterable[bytes], *, before: Position | None, where: Callable[[int], str]) -> Folded:
        """Fold the changes that committed before a position, by default all.

        Args:
            lines: one change each.
            before: the position.
            where: returns the place of a line, by its number from 1, for errors.

        Raises:
            BadValue: a line is not in the format ``json``.
        """
        number, latest = 0, Position(0, Lsn(0))
        self._db.execute("BEGIN")
        for number, line in enumerate(lines, 1):
            try:
                latest = max(latest, self._fold_line(line, before))
            except (ValueError, KeyError, TypeError, AttributeError, BadValue) as exc:
                raise BadValue(
                    f"{where(number)} is not a change in the format json",
                    hint="give the output of: rdsrepl slot tail NAME -f json",
                ) from exc
            if number % _LINES_PER_TRANSACTION == 0:
                self._db.execute("COMMIT")
                self._db.execute("BEGIN")
        self._db.execute("COMMIT")
        self.latest = max(latest, self.latest)
        return Folded(number, latest)

    def _fold_line(self, line: bytes, before: Position | None) -> Position:
        event = parsed(line)
        operation = event["op"]
        position = Position(int(event["timeline"].text), Lsn.parse(event["commit_lsn"]))
        if operation not in ("c", "r", "u", "d", "t") or (before is not None and position >= before):
            return position
        table = table_text(event["schema"], event["table"])
        committed = event["commit_time"] or ""
        identity = f"{position.timeline:010}{int(position.lsn):020}{int(event['seq'].text):020}"
        if operation == "t":
            self._truncated[table] = max((identity, committed), self._truncated.get(table, ("", "")))
        elif event["key"] is not None:
            self._fold_row(table, (identity, committed), event)
        return position

    def _fold_row(self, table: str, identity: tuple[str, str], event: Mapping[str, Any]) -> None:
        key, after = event["key"], event["after"]
        self._keys.setdefault(table, set()).add(frozenset(key))
        if after is None:
            self._put(table, key, identity, None)
            return
        old_key = {name: (event["before"] or key).get(name, value) for name, value in key.items()}
        unchanged = event.get("unchanged") or ()
        row = dict(after)
        if unchanged and (old_key == key or self._in_one_order):
            old = self._row(table, old_key) or {}
            row |= {name: value for name, value in old.items() if name in unchanged}
        if old_key != key:
            self._put(table, old_key, identity, None)
        # The spelling of these values is that of an unknown type.
        for name in event.get("as_text") or ():
            row.pop(name, None)
        self._put(table, key, identity, row)

    def _row(self, table: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        row = self._db.execute("SELECT row FROM folded WHERE tab = ? AND key = ?", (table, key_text(key))).fetchone()
        return None if row is None or row[0] is None else _loaded(row[0])

    def _put(self, table: str, key: Mapping[str, Any], identity: tuple[str, str], row: dict[str, Any] | None) -> None:
        self._db.execute(
            "INSERT INTO folded VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET identity = excluded.identity,"
            " committed = excluded.committed, row = excluded.row WHERE excluded.identity > identity",
            (table, key_text(key), *identity, None if row is None else _dumped(row)),
        )

    def add_source(self, table: str, rows: Iterable[tuple[str, str]]) -> int:
        """Keep the rows of the source, each as its key and its JSON text; return how many there are."""
        self._db.execute("BEGIN")
        count = 0
        for key, row in rows:
            self._db.execute("INSERT INTO source VALUES (?, ?, ?)", (table, key, row))
            count += 1
        self._db.execute("COMMIT")
        return count

    def pairs(self, table: str, since: str = "") -> Iterator[Pair]:
        """Yield each key of both sides; a key whose last line committed before SINCE is not in the stream."""
        truncated, truncated_at = self._truncated.get(table, ("", ""))
        was_truncated = bool(truncated) and truncated_at >= since
        query = """
            SELECT s.key, s.row, f.row, f.identity, f.committed
              FROM source s LEFT JOIN folded f USING (tab, key) WHERE s.tab = ?
            UNION ALL
            SELECT f.key, NULL, f.row, f.identity, f.committed
              FROM folded f LEFT JOIN source s USING (tab, key) WHERE f.tab = ? AND s.key IS NULL
        """
        for key, here, there, identity, committed in self._db.execute(query, (table, table)):
            is_newer = identity is not None and identity > truncated
            row = _loaded(there) if is_newer and there is not None else None
            yield Pair(key, here, row, committed >= since if is_newer else was_truncated)


def _dumped(row: Mapping[str, Any]) -> str:
    return json.dumps(_marked(row))


def _marked(value: Any) -> Any:
    """Mark strings and numbers, so that each is read back as what it was."""
    if isinstance(value, Mapping):
        return {name: _marked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    if isinstance(value, Number):
        return f"n{value.text}"
    return f"s{value}" if isinstance(value, str) else value


def _loaded(text: str) -> dict[str, Any]:
    found: dict[str, Any] = _unmarked(json.loads(text))
    return found


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unmarked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if isinstance(value, str):
        return Number(value[1:]) if value[0] == "n" else value[1:]
    return value
