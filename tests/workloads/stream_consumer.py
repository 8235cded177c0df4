"""A consumer that begins with nothing: it applies each line of the ``json`` format once, and has the tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdsrepl.lsn import Lsn
from tests.fixtures.postgres import Database

if TYPE_CHECKING:
    from psycopg.abc import QueryNoTemplate

Event = dict[str, Any]
RowKey = tuple[Any, ...]


def read(path: Path) -> list[Event]:
    """Return the whole lines of a file, in their order; numbers with a fraction stay text."""
    content = path.read_bytes()
    return [json.loads(line, parse_float=str) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def identity(event: Event) -> tuple[int, int, int]:
    """Return what identifies a line, and orders the lines of a key."""
    return event["timeline"], int(Lsn.parse(event["commit_lsn"])), event["seq"]


@dataclass
class Consumer:
    """The tables of a consumer.

    Attributes:
        tables: the rows of each table by key; without a key by the row's text and a number from 0.
        repeats: lines that came again.
        out_of_order: lines of a key that came behind a later one, seen for the first time.
        copied: how many rows came from chunks.
    """

    tables: dict[str, dict[RowKey, Event]] = field(default_factory=dict)
    repeats: int = 0
    out_of_order: list[Event] = field(default_factory=list)
    copied: int = 0
    _seen: set[tuple[int, int, int]] = field(default_factory=set)
    _is_whole: set[str] = field(default_factory=set)
    _latest: dict[tuple[str, RowKey], tuple[int, int, int]] = field(default_factory=dict)

    def fold(self, events: Iterable[Event]) -> Consumer:
        """Apply lines in their order."""
        for event in events:
            if event["table"] is None:
                continue
            place = identity(event)
            if place in self._seen:
                self.repeats += 1
                continue
            self._seen.add(place)
            self._apply(event, place)
        return self

    def _apply(self, event: Event, place: tuple[int, int, int]) -> None:
        name = event["table"]
        rows = self.tables.setdefault(name, {})
        if event["op"] == "t":
            rows.clear()
            self._is_whole.add(name)
            # A copy that ended early left the table incomplete; this begins another one.
            self.out_of_order = [one for one in self.out_of_order if one["table"] != name or one["key"] is not None]
            return
        if event["key"] is None:
            self._apply_without_key(event, rows)
            return
        key = tuple(event["key"].values())
        old = (
            tuple(event["before"][column] for column in event["key"]) if event["op"] == "u" and event["before"] else key
        )
        for one in {key, old}:
            if self._latest.get((name, one), (0, 0, 0)) > place:
                self.out_of_order.append(event)
            self._latest[name, one] = place
        before = rows.pop(old, {})
        if event["op"] == "u":
            rows[key] = {**before, **event["after"]}
        elif event["op"] != "d":
            rows[key] = event["after"]
            self.copied += event["op"] == "r"

    def _apply_without_key(self, event: Event, rows: dict[RowKey, Event]) -> None:
        """Remove one row that equals the old one, and add the new one; before the first rows nothing is known."""
        before, after = event["before"], event["after"]
        if before is not None and rows.pop(last_of(rows, before), None) is None and event["table"] in self._is_whole:
            self.out_of_order.append(event)
        if after is not None:
            new = {**(before or {}), **after}
            number = last_of(rows, new)[1] + 1
            rows[_text(new), number] = new
            self.copied += event["op"] == "r"


def _text(row: Event) -> str:
    return json.dumps(row, sort_keys=True)


def last_of(rows: dict[RowKey, Event], row: Event) -> RowKey:
    """Return the key of the last one of equal rows; its number is -1 if there is none."""
    text, number = _text(row), 0
    while (text, number) in rows:
        number += 1
    return text, number - 1


@dataclass(frozen=True)
class Difference:
    """How a consumer's table differs from the source's: keys of rows.

    Attributes:
        missing, extra: rows that only the source has, or only the consumer.
        lost: rows without the value of a column.
        stale: rows with another value.
    """

    missing: tuple[RowKey, ...] = ()
    extra: tuple[RowKey, ...] = ()
    lost: tuple[RowKey, ...] = ()
    stale: tuple[RowKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.lost or self.stale)

    def __str__(self) -> str:
        return f"missing {len(self.missing)} extra {len(self.extra)} lost {len(self.lost)} stale {len(self.stale)}"


def source_rows(source: Database, table: str, key: tuple[str, ...]) -> dict[RowKey, Event]:
    """Return the rows of a table as a consumer must have them; ``to_json`` is the server's own spelling.

    Without a key equal rows have numbers.
    """
    from psycopg import sql

    query: QueryNoTemplate = sql.SQL("SELECT to_json(t)::text FROM {} t").format(sql.Identifier(*table.split(".")))
    with closing(source.connect()) as conn:
        rows = [json.loads(row[0], parse_float=str) for row in conn.execute(query).fetchall()]
    if key:
        return {tuple(row[column] for column in key): row for row in rows}
    found: dict[RowKey, Event] = {}
    for row in rows:
        text, number = last_of(found, row)
        found[text, number + 1] = row
    return found


def compare(ours: dict[RowKey, Event], truth: dict[RowKey, Event]) -> Difference:
    """Compare a consumer's table with the source's."""
    both = ours.keys() & truth.keys()
    lost = {key for key in both if ours[key].keys() < truth[key].keys()}
    return Difference(
        tuple(truth.keys() - ours.keys()),
        tuple(ours.keys() - truth.keys()),
        tuple(lost),
        tuple(key for key in both - lost if ours[key] != truth[key]),
    )
