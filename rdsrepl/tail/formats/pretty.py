"""The ``pretty`` format: one line a change, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from json.encoder import encode_basestring as quote
from typing import Final

from rdsrepl.tail.formats.base import ChangesOnly, RowWriter, Values, key_numbers, text_of
from rdsrepl.tail.formats.type_catalog import Catalog
from rdsrepl.tail.model import Relation, Transaction
from rdsrepl.text.escapes import shown


class PrettyFormat(ChangesOnly):
    """Writes one line for each change, with or without colours."""

    _COLOURS: Final = {"INSERT": "32", "UPDATE": "33", "DELETE": "31", "TRUNCATE": "35", "MESSAGE": "36"}

    def __init__(self, catalog: Catalog, *, colour: bool) -> None:
        super().__init__(catalog)
        self._colour = colour

    def writer(self, relation: Relation) -> RowWriter:
        """Return the writer of a relation's changes."""
        return _PrettyWriter(self, relation, key_numbers(relation, self._catalog))

    def truncate(
        self,
        relation: Relation,
        cascade: bool,
        restart_identity: bool,
        lsn: str,
        tx: Transaction,
        seq: int,
    ) -> str:
        """Write a TRUNCATE of one table."""
        words = ("CASCADE " if cascade else "") + ("RESTART IDENTITY" if restart_identity else "")
        return self.line("TRUNCATE", f"{relation.schema}.{relation.table}", words.strip(), lsn, tx)

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a message."""
        return self.line("MESSAGE", prefix, quote(text_of(content)[0]), lsn, tx)

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:
        """Write the end of a prepared transaction."""
        return self.line(verb.replace("_", " ").upper(), quote(gid), "", lsn, tx)

    def line(self, verb: str, subject: str, rest: str, lsn: str, tx: Transaction) -> str:
        """Write one line: commit time, position, transaction, verb, table, values."""
        # Names and values may contain any character; a change must stay one line.
        subject, rest = shown(subject), shown(rest)
        clock = tx.commit_time[11:23] if tx.commit_time else "-"
        if not self._colour:
            return f"{clock} {lsn} {tx.xid or '-'} {verb:<8} {subject} {rest}".rstrip() + "\n"
        code = self._COLOURS.get(verb, "36")
        return (
            f"\x1b[2m{clock} {lsn} {tx.xid or '-'}\x1b[0m \x1b[{code}m{verb:<8}\x1b[0m \x1b[1m{subject}\x1b[0m {rest}\n"
        )


class _PrettyWriter:
    __slots__ = ("_format", "_key", "_names", "_subject")

    def __init__(self, fmt: PrettyFormat, relation: Relation, key: Sequence[int]) -> None:
        self._format = fmt
        self._names = [column.name for column in relation.columns]
        self._subject = f"{relation.schema}.{relation.table}"
        self._key = key

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        return self._format.line("INSERT", self._subject, self._pairs(new), lsn, tx)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        pairs: list[str] = []
        for number, name in enumerate(self._names):
            before = old[number] if old is not None and (whole or number in self._key) else None
            if new[number] is None:
                pairs.append(f"{name}=(unchanged)")
            elif before is not None and before != new[number]:
                pairs.append(f"{name}={before}→{new[number]}")
            else:
                pairs.append(f"{name}={new[number]}")
        return self._format.line("UPDATE", self._subject, " ".join(pairs), lsn, tx)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        numbers = range(len(self._names)) if whole or not self._key else self._key
        pairs = " ".join(f"{self._names[n]}={old[n]}" for n in numbers)
        return self._format.line("DELETE", self._subject, pairs, lsn, tx)

    def _pairs(self, values: Values) -> str:
        return " ".join(f"{name}={value}" for name, value in zip(self._names, values, strict=False))
