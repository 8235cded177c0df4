"""The decoder of wal2json's messages: parsed, and written in another format.

Format version 2 is one message for each change, with B and C around a transaction; version 1 is one message for each
transaction. In version 2 the start LSN of a transaction's last message is the end of its commit record, which is
confirmed; in version 1 it is the start of the transaction, and ``nextlsn`` is the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rdsrepl.errors import BadValue
from rdsrepl.lsn import Lsn
from rdsrepl.tail.decoders.encodings import Decode
from rdsrepl.tail.decoders.raw_wal2json import malformed_change
from rdsrepl.tail.formats.base import Format, RowWriter, TextMarkingWriter, Values
from rdsrepl.tail.formats.type_catalog import Catalog, ReplicaIdentity
from rdsrepl.tail.formats.values import Convert, to_json
from rdsrepl.tail.model import OWN_PREFIX, Column, DecodedBatch, Relation, TableFilter, Transaction
from rdsrepl.tail.timelines import Timelines
from rdsrepl.tail.xlogdata import MALFORMED, PAYLOAD, end_of_commit

_STRAY_COMMA: Final = '{"change":[,'
_BYTEA: Final = 17

#: what the plugin must print for the parsed formats. Types as OIDs: type names are printed without escapes,
#: which is not always JSON, and a name may belong to another type by now.
PARSED_OPTIONS: Final = {
    "format-version": "2",
    "include-types": "false",
    "include-type-oids": "true",
    "include-xids": "true",
    "include-timestamp": "true",
    "include-lsn": "true",
    "include-pk": "true",
    "include-transaction": "true",
}


@dataclass(frozen=True, slots=True)
class _CompiledTable:
    """A table as an event describes it.

    Attributes:
        writer: writes the table's events.
        converts: the conversion of each column, in the writer's order.
    """

    writer: RowWriter
    converts: Mapping[str, Convert]


class _Number(str):
    """A JSON number with the text that was parsed, and so with every digit."""

    __slots__ = ()


class ParsedWal2json:
    """Parses version 2 or 1 and writes another format.

    What the plugin does not print is missing: NaN and infinities are null. In an UPDATE or a DELETE the old row has
    the columns of the replica identity; for other changes they are read from the catalogue.
    """

    def __init__(
        self,
        fmt: Format,
        tables: TableFilter,
        catalog: Catalog,
        *,
        decode: Decode,
        until_lsn: int | None = None,
    ) -> None:
        """Make a decoder.

        Args:
            fmt: writes the lines.
            tables: which tables to stream.
            catalog: looks up types and replica identities.
            decode: from the database's encoding, in which the plugin prints.
            until_lsn: stop before the first transaction whose commit record starts there or later.
        """
        self._format = fmt
        self._tables = tables
        self._catalog = catalog
        self._decode = decode
        self._until = until_lsn
        self._known: dict[tuple[Any, ...], _CompiledTable] = {}
        self._timelines = Timelines(0)
        self._tx = Transaction.of(None, 0, 0, None)
        self._seq = 0
        self._open = False

    def reset(self, timelines: Timelines) -> None:
        """Start a new connection."""
        self._timelines, self._seq, self._open = timelines, 0, False

    def feed(self, messages: Sequence[bytes]) -> DecodedBatch:
        """Parse and write messages in order; the first malformed one ends the batch and is its ``error``."""
        batch = DecodedBatch([], 0, [], self._open)
        lines: list[str] = []
        self._catalog.batch_received()
        m, whole = b"", (0, 0)
        try:
            for m in messages:
                start = end_of_commit(m)
                text = self._decode(m[PAYLOAD:])
                if text.startswith(_STRAY_COMMA):  # version 1 writes it before a message that follows another
                    text = _STRAY_COMMA[:-1] + text[len(_STRAY_COMMA) :]
                document = json.loads(text, parse_int=_Number, parse_float=_Number)
                if "action" not in document:
                    # The header has the transaction's start; a message outside of a transaction has no other position.
                    end_lsn = int(_lsn(document["nextlsn"])) if "nextlsn" in document else start
                    if end_lsn < start:
                        raise ValueError(f"its nextlsn {Lsn(end_lsn)} precedes its start")
                    self._transaction_v1(document, end_lsn, lines, batch)
                    batch.commits.append((end_lsn, batch.changes))
                    batch.committed_lines = len(lines)
                    if self._until is not None and end_lsn >= self._until:
                        batch.reached_until = True
                        break
                elif not self._message_v2(document, start, lines, batch):
                    break
                whole = len(lines), batch.changes
        except MALFORMED as exc:
            batch.error = malformed_change(m, exc)
            del lines[whole[0] :]
            batch.changes = whole[1]
        self._open = batch.in_transaction
        batch.lines = lines
        return batch

    def _message_v2(self, event: dict[str, Any], start: int, lines: list[str], batch: DecodedBatch) -> bool:
        """Write one message; return False if ``until_lsn`` was reached before it."""
        action = event["action"]
        if action == "B":
            if batch.in_transaction:
                raise ValueError("a transaction begins within another one")
            commit_lsn = _lsn(event.get("lsn", "0/0"))
            if self._until is not None and commit_lsn >= self._until:
                batch.reached_until = True
                return False
            self._begin(event, str(commit_lsn), self._timelines.of_start(commit_lsn))
            batch.in_transaction = True
            lines.append(self._format.begin(self._tx))
        elif action == "C":
            if not batch.in_transaction:
                raise ValueError("it ends a transaction that did not begin")
            lines.append(self._format.commit(self._tx))
            batch.commits.append((start, batch.changes))
            batch.committed_lines = len(lines)
            batch.in_transaction = False
        else:
            if not batch.in_transaction and (action != "M" or event["transactional"]):
                raise ValueError("a change outside of a transaction")
            self._change(event, start, lines, batch)
        return True

    def _transaction_v1(self, document: dict[str, Any], end_lsn: int, lines: list[str], batch: DecodedBatch) -> None:
        """Write a transaction, or a message outside of one; this version has only the end of its record."""
        self._begin(document, str(Lsn(end_lsn)), self._timelines.of_end(end_lsn))
        lines.append(self._format.begin(self._tx))
        for change in document["change"]:
            event = {**change, "action": {"insert": "I", "update": "U", "delete": "D"}.get(change["kind"], "M")}
            if "columnnames" in change:
                event["columns"] = _zipped(change["columnnames"], change["columntypeoids"], change["columnvalues"])
            if "oldkeys" in change:
                old = change["oldkeys"]
                event["identity"] = _zipped(old["keynames"], old["keytypeoids"], old["keyvalues"])
            if "pk" in change:
                event["pk"] = [{"name": name} for name in change["pk"]["pknames"]]
            self._change(event, end_lsn, lines, batch)
        lines.append(self._format.commit(self._tx))

    def _begin(self, event: dict[str, Any], commit_lsn: str, timeline: int) -> None:
        stamp = event.get("timestamp")
        moment = None
        if stamp is not None:
            # "2026-01-31 12:00:00.5+00": fromisoformat takes the short offset since Python 3.11.
            moment = datetime.fromisoformat(stamp)
        xid = None if event.get("xid") is None else int(event["xid"])
        self._catalog.xid = xid
        self._tx = Transaction.at(xid, timeline, commit_lsn, moment)
        self._seq = 0

    def _change(self, event: dict[str, Any], position: int, lines: list[str], batch: DecodedBatch) -> None:
        lsn = str(Lsn(position))
        action = event["action"]
        if action == "M":
            self._seq += event["transactional"]
            if event["prefix"].startswith(OWN_PREFIX):
                return
            content = event["content"].encode("utf-8", "surrogateescape")
            tx, seq = self._tx, self._seq
            if not event["transactional"]:  # outside of any transaction: the end of its own record identifies it
                tx, seq = Transaction.of(None, self._timelines.of_end(position), position, None), 0
            lines.append(self._format.message(event["prefix"], content, event["transactional"], lsn, tx, seq))
            batch.changes += 1
            return
        self._seq += 1
        schema, table = event["schema"], event["table"]
        if not self._tables.wants(schema, table):
            return
        batch.changes += 1
        if action == "T":
            relation = Relation(0, schema, table, "d", ())
            lines.append(self._format.truncate(relation, False, False, lsn, self._tx, self._seq))
            return
        writer, new, old, whole = self._row(schema, table, event)
        if action == "I":
            lines.append(writer.insert(new, lsn, self._tx, self._seq))
        elif action == "U":
            lines.append(writer.update(new, old, whole, lsn, self._tx, self._seq))
        elif action != "D" or old is None:
            raise ValueError(f"{action!r} is not an action of the plugin, or its values are missing")
        else:
            lines.append(writer.delete(old, whole, lsn, self._tx, self._seq))

    def _row(self, schema: str, table: str, event: dict[str, Any]) -> tuple[RowWriter, Values, Values | None, bool]:
        """Return an event's values in pgoutput's form: a writer, the new values, the old ones."""
        new = {column["name"]: column for column in event.get("columns", [])}
        old = {column["name"]: column for column in event.get("identity", [])}
        now = self._catalog.replica_identity(schema, table)
        if "pk" in event:
            primary = frozenset(column["name"] for column in event["pk"])
        else:  # version 1 does not print it with FULL
            primary = frozenset() if now is None else now.primary_key & (new.keys() | old.keys())
        whole, key = self._identity(now, event, frozenset(new), frozenset(old), primary)
        # The old row has every column; without it, the new row has them except unchanged TOAST values.
        columns = {**old, **new} if whole else {**new, **old}
        types = tuple((name, _type_oid(column)) for name, column in columns.items())
        described = (schema, table, types, primary if whole else key, whole)
        if described not in self._known:
            self._known[described] = self._describe(*described)
        known = self._known[described]
        converts = known.converts
        new_values: Values = tuple(
            _converted(convert, new[name]) if name in new else None for name, convert in converts.items()
        )
        old_values: Values | None = tuple(
            _converted(convert, old[name]) if name in old else "null" for name, convert in converts.items()
        )
        # The plugin prints the identity also when it did not change.
        if not old or (new and not whole and all(old[n]["value"] == new.get(n, old[n])["value"] for n in old)):
            old_values = None
        return known.writer, new_values, old_values, whole

    def _identity(
        self,
        now: ReplicaIdentity | None,
        event: dict[str, Any],
        new: frozenset[str],
        old: frozenset[str],
        primary: frozenset[str],
    ) -> tuple[bool, frozenset[str]]:
        """Return whether the replica identity is FULL, and its columns if it is not.

        The catalogue has it, unless it was changed after the event; then the catalogue does not fit the event.
        """
        full = now is not None and now.kind == "f"
        if event["action"] == "I":
            return full, primary if now is None or full or not now.columns <= new else now.columns
        # Version 1 omits nulls from the old row.
        if full and (new <= old or "kind" in event):
            return True, old
        if old == primary or (now is not None and now.columns == old):
            return False, old
        return new <= old and primary <= old, old

    def _describe(
        self, schema: str, table: str, types: tuple[tuple[str, int], ...], key: frozenset[str], whole: bool
    ) -> _CompiledTable:
        columns = tuple(Column(name, type_oid, -1, name in key) for name, type_oid in types)
        relation = Relation(0, schema, table, "f" if whole else "d", columns, key)
        conversions, writer = self._format.conversions(relation), self._format.writer(relation)
        if any(conversion.may_be_text for conversion in conversions):
            writer = TextMarkingWriter(writer, relation)
        converts = {name: to_json(conversion) for (name, _), conversion in zip(types, conversions, strict=True)}
        return _CompiledTable(writer, converts)


def _converted(convert: Convert, column: dict[str, Any]) -> str:
    """Return a value as JSON text; the plugin prints some types as JSON, and bytea without its prefix."""
    value = column["value"]
    if value is None:
        return "null"
    if isinstance(value, bool):
        return convert("t" if value else "f")
    if isinstance(value, _Number):
        return convert(str(value))
    if not isinstance(value, str):
        raise ValueError("a value is an object or a list")
    return convert(f"\\x{value}" if _type_oid(column) == _BYTEA else value)


def _zipped(names: list[str], type_oids: list[int], contents: list[Any]) -> list[dict[str, Any]]:
    return [{"name": n, "typeoid": t, "value": v} for n, t, v in zip(names, type_oids, contents, strict=True)]


def _type_oid(column: dict[str, Any]) -> int:
    """Return a column's type; the plugin prints an OID of 2^31 and above as a negative number."""
    return int(column["typeoid"]) & 0xFFFFFFFF


def _lsn(text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except BadValue as exc:
        raise ValueError(exc.message) from None
