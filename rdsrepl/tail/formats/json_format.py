"""The ``json`` format, our own: one object a line."""

from __future__ import annotations

from json.encoder import encode_basestring as quote

from rdsrepl.tail.formats.base import (
    ChangesOnly,
    RowImages,
    RowWriter,
    Values,
    json_bool,
    null_if_unsent,
    template,
    text_of,
    with_old_values,
)
from rdsrepl.tail.formats.fast_lines import Field, LineParts, Piece
from rdsrepl.tail.model import Relation, Transaction


class JsonFormat(ChangesOnly):
    """Writes one object a line; ``(timeline, commit_lsn, seq)`` identifies it permanently (``model.Transaction``)."""

    def writer(self, relation: Relation) -> RowWriter:
        """Return the writer of a relation's changes."""
        return _JsonWriter(RowImages(relation, self._catalog), self.insert_op)

    def of_transaction(self, tx: Transaction) -> tuple[bytes, ...]:
        """Return the end of each line, up to its number."""
        return (tx.suffix.encode("utf-8", "surrogateescape"),)

    def truncate(
        self, relation: Relation, cascade: bool, restart_identity: bool, lsn: str, tx: Transaction, seq: int
    ) -> str:
        """Write a TRUNCATE of one table."""
        return (
            f'{{"op":"t","schema":{quote(relation.schema)},"table":{quote(relation.table)},"key":null,"before":null,'
            f'"after":null,"cascade":{json_bool(cascade)},"restart_identity":{json_bool(restart_identity)},'
            f'"lsn":"{lsn}{tx.suffix}{seq}}}\n'
        )

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a message of ``pg_logical_emit_message``; ``encoding`` is ``hex`` if the content is not text."""
        text, is_hex = text_of(content)
        encoding = ',"encoding":"hex"' if is_hex else ""
        return (
            f'{{"op":"m","schema":null,"table":null,"key":null,"before":null,"after":null,'
            f'"transactional":{json_bool(transactional)},"prefix":{quote(prefix)},"content":{quote(text)}{encoding},'
            f'"lsn":"{lsn}{tx.suffix}{seq}}}\n'
        )

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:
        """Write the end of a prepared transaction."""
        return (
            f'{{"op":"{verb}","schema":null,"table":null,"key":null,"before":null,"after":null,'
            f'"lsn":"{lsn}{tx.suffix}{seq}}}\n'
        )


class _JsonWriter:
    __slots__ = ("_deletes", "_head", "_images", "_insert", "_update", "parts")

    def __init__(self, images: RowImages, insert_op: str) -> None:
        relation = images.relation
        self._images = images
        self._head = f'"schema":{quote(relation.schema)},"table":{quote(relation.table)},"key":'
        new = [*images.key, ',"before":null,"after":', *images.after, ',"lsn":"']
        insert, update = [*self._start(insert_op), *new], [*self._start("u"), *new]
        deletes = {
            whole: [*self._start("d"), *images.key, ',"before":', *images.before(whole), ',"after":null,"lsn":"']
            for whole in (False, True)
        }
        self._insert, self._update = template(insert), template(update)
        self._deletes = {whole: template(parts) for whole, parts in deletes.items()}
        end = (Field.LSN, Piece(0), Field.SEQ, "}\n")
        self.parts = LineParts((*insert, *end), (*update, *end), (*deletes[False], *end), (*deletes[True], *end))

    def _start(self, op: str) -> list[str | int]:
        return [f'{{"op":"{op}",{self._head}']

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{self._insert(new)}{lsn}{tx.suffix}{seq}}}\n"

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        if old is None and None not in new:
            return f"{self._update(new)}{lsn}{tx.suffix}{seq}}}\n"
        images = self._images
        after, unchanged = images.known_after(new)
        key = template(images.key)(null_if_unsent(new if old is None else with_old_values(new, old)))
        before = "null" if old is None else template(images.before(whole))(old)
        rest = f',"unchanged":{unchanged}' if unchanged != "[]" else ""
        return (
            f'{{"op":"u",{self._head}{key},"before":{before},"after":{template(after)(new)}{rest},'
            f'"lsn":"{lsn}{tx.suffix}{seq}}}\n'
        )

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{self._deletes[whole](old)}{lsn}{tx.suffix}{seq}}}\n"
