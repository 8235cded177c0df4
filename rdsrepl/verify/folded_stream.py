"""Fold the lines of a stream in the format ``json`` into the rows that they leave behind.

The rows are in a SQLite file, so a stream of any size fits. The result does not depend on the order of lines of
different keys, nor on lines that come again: a line counts only if its identity is greater than that of the last line
of its key, and a row only if it is greater than that of the last TRUNCATE of its table.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn

_CREATE: Final = """
CREATE TABLE folded (tab TEXT, key TEXT, identity TEXT, row TEXT, PRIMARY KEY (tab, key)) WITHOUT ROWID;
CREATE TABLE source (tab TEXT, key TEXT, row TEXT, PRIMARY KEY (tab, key)) WITHOUT ROWID;
"""
_LINES_PER_TRANSACTION: Final = 50_000


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a JSON text with all its digits."""

    text: str


def parsed(text: str | bytes) -> Any:
    """Return a JSON text as an object that equals another one if both have the same values, digit for digit."""
    return json.loads(text, parse_float=Number, parse_int=Number, parse_constant=Number)


def key_text(key: Mapping[str, Any]) -> str:
    """Return a key as text, equal for equal keys."""
    return json.dumps(_marked(key), sort_keys=True)


class FoldedStream:
    """The rows that a stream leaves behind, and those of the source to compare them with."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _CREATE)
        self._truncated: dict[str, str] = {}

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def fold(self, lines: Iterable[bytes], *, before: Lsn, where: str) -> int:
        """Fold the changes that committed before an LSN; return how many there were.

        Raises:
            BadValue: a line is not in the format ``json``; WHERE names the file.
        """
        folded = 0
        self._db.execute("BEGIN")
        for number, line in enumerate(lines, 1):
            try:
                folded += self._fold_line(line, before)
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise BadValue(
                    f"{where}, line {number} is not a change in the format json",
                    hint="give the output of: rdsrepl slot tail NAME -f json",
                ) from exc
            if number % _LINES_PER_TRANSACTION == 0:
                self._db.execute("COMMIT")
                self._db.execute("BEGIN")
        self._db.execute("COMMIT")
        return folded

    def _fold_line(self, line: bytes, before: Lsn) -> int:
        event = parsed(line)
        operation, commit = event["op"], Lsn.parse(event["commit_lsn"])
        if operation not in ("c", "r", "u", "d", "t") or commit >= before:
            return 0
        table = f"{event['schema']}.{event['table']}"
        identity = f"{int(event['timeline'].text):010}{int(commit):020}{int(event['seq'].text):020}"
        if operation == "t":
            self._truncated[table] = max(identity, self._truncated.get(table, ""))
            return 1
        key = event["key"]
        if key is None:
            return 0
        after = event["after"]
        old_key = {name: (event["before"] or key).get(name, value) for name, value in key.items()}
        old = self._row(table, old_key)
        if after is None:
            self._put(table, key, identity, None)
            return 1
        if old_key != key:
            self._put(table, old_key, identity, None)
        unknown = {*(event.get("unchanged") or ()), *(event.get("as_text") or ())}
        row = {name: value for name, value in (old or {}).items() if name in unknown}
        row |= {name: value for name, value in after.items() if name not in (event.get("as_text") or ())}
        self._put(table, key, identity, row)
        return 1

    def _row(self, table: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        row = self._db.execute("SELECT row FROM folded WHERE tab = ? AND key = ?", (table, key_text(key))).fetchone()
        return None if row is None or row[0] is None else _loaded(row[0])

    def _put(self, table: str, key: Mapping[str, Any], identity: str, row: Mapping[str, Any] | None) -> None:
        self._db.execute(
            "INSERT INTO folded VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET identity = excluded.identity,"
            " row = excluded.row WHERE excluded.identity > identity",
            (table, key_text(key), identity, None if row is None else _dumped(row)),
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

    def pairs(self, table: str) -> Iterator[tuple[str, str | None, dict[str, Any] | None, bool]]:
        """Yield each key with the source's row, the row of the stream, and whether the stream has the key at all."""
        truncated = self._truncated.get(table, "")
        query = """
            SELECT s.key, s.row, f.row, f.identity FROM source s LEFT JOIN folded f USING (tab, key) WHERE s.tab = ?
            UNION ALL
            SELECT f.key, NULL, f.row, f.identity FROM folded f LEFT JOIN source s USING (tab, key)
             WHERE f.tab = ? AND s.key IS NULL
        """
        for key, here, there, identity in self._db.execute(query, (table, table)):
            is_live = identity is not None and identity > truncated and there is not None
            yield key, here, _loaded(there) if is_live else None, identity is not None or bool(truncated)


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
