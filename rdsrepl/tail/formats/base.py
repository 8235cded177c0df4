"""What a change looks like on the way out: ``json`` (ours), ``wal2json``, ``pretty``; ``debezium`` has its own module.

A format gives each relation a writer, made once: its lines are ``%`` templates, so that writing a row is one C call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from json.encoder import encode_basestring as quote
from operator import itemgetter
from typing import Any, ClassVar, Final, Protocol

from rdsrepl.tail.formats.catalog import Catalog
from rdsrepl.tail.formats.values import AsText, Dialect, Shape, wal2json_shape
from rdsrepl.tail.model import Relation, Transaction
from rdsrepl.text.escapes import shown

#: JSON texts of a row's columns (None: unchanged TOAST), then anything.
Values = tuple[Any, ...]

#: what a session sets so that values come in one form, whatever the role's or the database's defaults are.
ISO_SETTINGS: Final = {
    "DateStyle": "ISO",
    "IntervalStyle": "iso_8601",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}


class Writer(Protocol):
    """Writes the changes of one relation."""

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an INSERT."""
        ...

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an UPDATE; OLD is the old key, or with WHOLE the old row."""
        ...

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a DELETE; OLD is the old key, or with WHOLE the old row."""
        ...


class Format(Protocol):
    """How changes are written."""

    @property
    def dialect(self) -> Dialect:
        """Which values' spelling it takes."""
        ...

    @property
    def settings(self) -> Mapping[str, str]:
        """What a session must set so that values come in one form."""
        ...

    def shapes(self, relation: Relation) -> list[Shape]:
        """Return each column's way to JSON."""
        ...

    def writer(self, relation: Relation) -> Writer:
        """Return what writes a relation's changes."""
        ...

    def begin(self, tx: Transaction) -> str:
        """Write a transaction's begin; most formats write nothing."""
        ...

    def commit(self, tx: Transaction) -> str:
        """Write a transaction's end; most formats write nothing."""
        ...

    def truncate(
        self, relation: Relation, cascade: bool, restart_identity: bool, lsn: str, tx: Transaction, seq: int
    ) -> str:
        """Write a TRUNCATE of one table."""
        ...

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a message of ``pg_logical_emit_message``."""
        ...

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:
        """Write what became of a prepared transaction: ``commit_prepared`` or ``rollback_prepared``."""
        ...


def template(parts: Sequence[str | int]) -> Callable[[Values], str]:
    """Compile constants (text) and values (column numbers) into a function of a row."""
    text = "".join("%s" if isinstance(part, int) else part.replace("%", "%%") for part in parts)
    numbers = [part for part in parts if isinstance(part, int)]
    if not numbers:
        constant = text % ()
        return lambda values: constant
    if len(numbers) == 1:
        number = numbers[0]
        return lambda values: text % values[number]
    pick = itemgetter(*numbers)
    return lambda values: text % pick(values)


def members(relation: Relation, numbers: Sequence[int]) -> list[str | int]:
    """Return the template parts of a JSON object with these columns."""
    parts: list[str | int] = ["{"]
    for position, number in enumerate(numbers):
        parts += [("," if position else "") + quote(relation.columns[number].name) + ":", number]
    return [*parts, "}"]


def key_numbers(relation: Relation, catalog: Catalog) -> list[int]:
    """Return which columns identify a row: the replica identity, or with FULL the primary key, if there is one."""
    if relation.key is not None:
        return [n for n, column in enumerate(relation.columns) if column.name in relation.key]
    if relation.replica_identity == "f":
        # pgoutput flags every column then; the primary key identifies just as well, and says it shorter.
        primary = catalog.primary_key(relation.oid)
        return [n for n, column in enumerate(relation.columns) if column.name in primary]
    return [n for n, column in enumerate(relation.columns) if column.is_key]


class TextMarkingWriter:
    """Another writer, for a relation with values that may be given as text: each line names their columns."""

    __slots__ = ("_inner", "_names")

    def __init__(self, inner: Writer, relation: Relation) -> None:
        self._inner = inner
        self._names = [column.name for column in relation.columns]

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an INSERT."""
        return self._inner.insert(new, lsn, self._marked(tx, new), seq)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an UPDATE; a column is named when its old or its new value is given as text."""
        return self._inner.update(new, old, whole, lsn, self._marked(tx, new, old or ()), seq)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a DELETE."""
        return self._inner.delete(old, whole, lsn, self._marked(tx, old), seq)

    def _marked(self, tx: Transaction, *rows: Values) -> Transaction:
        numbers = {number for row in rows for number, value in enumerate(row) if type(value) is AsText}
        return tx.with_text([self._names[number] for number in sorted(numbers)]) if numbers else tx


def text_of(content: bytes) -> tuple[str, bool]:
    """Return a message's content as text, or as hex (and True) when it is no UTF-8."""
    try:
        return content.decode(), False
    except UnicodeDecodeError:
        return content.hex(), True


class RowImages:
    """The objects ``key``, ``before`` and ``after`` of a relation; shared by the JSON formats.

    Attributes:
        relation: whose they are.
        key_columns: the numbers of the columns that identify a row.
        key, before_key, before_row, after: template parts.
    """

    __slots__ = ("after", "before_key", "before_row", "key", "key_columns", "relation")

    def __init__(self, relation: Relation, catalog: Catalog) -> None:
        every = list(range(len(relation.columns)))
        key = key_numbers(relation, catalog)
        flagged = [n for n, column in enumerate(relation.columns) if column.is_key]
        self.relation = relation
        self.key_columns = key
        self.key: list[str | int] = members(relation, key) if key else ["null"]
        self.before_key: list[str | int] = members(relation, flagged) if flagged else ["null"]
        self.before_row = members(relation, every)
        self.after = members(relation, every)

    def before(self, whole: bool) -> list[str | int]:
        """Return the parts of ``before``: of the whole old row, or of its key."""
        return self.before_row if whole else self.before_key

    def known_after(self, new: Values) -> tuple[list[str | int], str]:
        """Return the parts of ``after`` without unchanged TOAST values, and those columns' names as a JSON array."""
        count = len(self.relation.columns)
        known = [n for n in range(count) if new[n] is not None]
        unchanged = [quote(self.relation.columns[n].name) for n in range(count) if new[n] is None]
        return members(self.relation, known), "[" + ",".join(unchanged) + "]"


def fill(values: Values, old: Values) -> Values:
    """Give a key column that came as unchanged the old value: an unchanged key is the same key."""
    return tuple(b if a is None else a for a, b in zip(values, old, strict=True))


def known(values: Values) -> Values:
    """Give a key column whose value nobody sent a null: servers before 13.6 leave out a large key that is unchanged."""
    return tuple("null" if value is None else value for value in values) if None in values else values


class _ChangesOnly:
    """What our own formats share: values in our dialect, and nothing said of a transaction's begin and end."""

    dialect: ClassVar[Dialect] = "json"
    settings: ClassVar[Mapping[str, str]] = ISO_SETTINGS

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def shapes(self, relation: Relation) -> list[Shape]:
        """Return each column's way to JSON."""
        return [self._catalog.shape(column.type_oid) for column in relation.columns]

    def begin(self, tx: Transaction) -> str:  # noqa: ARG002
        """Write nothing."""
        return ""

    def commit(self, tx: Transaction) -> str:  # noqa: ARG002
        """Write nothing."""
        return ""


class JsonFormat(_ChangesOnly):
    """One object a line; ``(timeline, commit_lsn, seq)`` identifies it for ever (``changes.Transaction``)."""

    def writer(self, relation: Relation) -> Writer:
        """Return what writes a relation's changes."""
        return _JsonWriter(RowImages(relation, self._catalog))

    def truncate(
        self, relation: Relation, cascade: bool, restart_identity: bool, lsn: str, tx: Transaction, seq: int
    ) -> str:
        """Write a TRUNCATE of one table."""
        return (
            f'{{"op":"t","schema":{quote(relation.schema)},"table":{quote(relation.table)},"key":null,"before":null,'
            f'"after":null,"cascade":{_bool(cascade)},"restart_identity":{_bool(restart_identity)},'
            f'"lsn":"{lsn}{tx.suffix}{seq}}}\n'
        )

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a message of ``pg_logical_emit_message``; ``encoding`` is ``hex`` when the content is no text."""
        text, is_hex = text_of(content)
        encoding = ',"encoding":"hex"' if is_hex else ""
        return (
            f'{{"op":"m","schema":null,"table":null,"key":null,"before":null,"after":null,'
            f'"transactional":{_bool(transactional)},"prefix":{quote(prefix)},"content":{quote(text)}{encoding},'
            f'"lsn":"{lsn}{tx.suffix}{seq}}}\n'
        )

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002 - the suffix has the gid
        """Write what became of a prepared transaction."""
        return (
            f'{{"op":"{verb}","schema":null,"table":null,"key":null,"before":null,"after":null,'
            f'"lsn":"{lsn}{tx.suffix}{seq}}}\n'
        )


class _JsonWriter:
    __slots__ = ("_deletes", "_head", "_images", "_insert", "_update")

    def __init__(self, images: RowImages) -> None:
        relation = images.relation
        self._images = images
        self._head = f'"schema":{quote(relation.schema)},"table":{quote(relation.table)},"key":'
        self._insert = template([*self._start("c"), *images.key, ',"before":null,"after":', *images.after, ',"lsn":"'])
        self._update = template([*self._start("u"), *images.key, ',"before":null,"after":', *images.after, ',"lsn":"'])
        self._deletes = {
            whole: template(
                [*self._start("d"), *images.key, ',"before":', *images.before(whole), ',"after":null,"lsn":"']
            )
            for whole in (False, True)
        }

    def _start(self, op: str) -> list[str | int]:
        return [f'{{"op":"{op}",{self._head}']

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{self._insert(new)}{lsn}{tx.suffix}{seq}}}\n"

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        if old is None and None not in new:
            return f"{self._update(new)}{lsn}{tx.suffix}{seq}}}\n"
        images = self._images
        after, unchanged = images.known_after(new)
        key = template(images.key)(known(new if old is None else fill(new, old)))
        before = "null" if old is None else template(images.before(whole))(old)
        rest = f',"unchanged":{unchanged}' if unchanged != "[]" else ""
        return (
            f'{{"op":"u",{self._head}{key},"before":{before},"after":{template(after)(new)}{rest},'
            f'"lsn":"{lsn}{tx.suffix}{seq}}}\n'
        )

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        return f"{self._deletes[whole](old)}{lsn}{tx.suffix}{seq}}}\n"


class Wal2jsonFormat:
    """What the wal2json plugin itself would print, format-version 2, with its default options."""

    dialect: ClassVar[Dialect] = "wal2json"
    # The plugin prints values as the session's own defaults have them, so nothing is set here.
    settings: ClassVar[Mapping[str, str]] = {}

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def shapes(self, relation: Relation) -> list[Shape]:
        """Return each column's way to JSON."""
        return [wal2json_shape(column.type_oid) for column in relation.columns]

    def writer(self, relation: Relation) -> Writer:
        """Return what writes a relation's changes."""
        names = self._catalog.type_names(
            [column.type_oid for column in relation.columns], [column.typmod for column in relation.columns]
        )
        return _Wal2jsonWriter(relation, names)

    def begin(self, tx: Transaction) -> str:  # noqa: ARG002
        """Write the B line."""
        return '{"action":"B"}\n'

    def commit(self, tx: Transaction) -> str:  # noqa: ARG002
        """Write the C line."""
        return '{"action":"C"}\n'

    def truncate(
        self,
        relation: Relation,
        cascade: bool,  # noqa: ARG002
        restart_identity: bool,  # noqa: ARG002
        lsn: str,  # noqa: ARG002
        tx: Transaction,  # noqa: ARG002
        seq: int,  # noqa: ARG002
    ) -> str:
        """Write a TRUNCATE of one table; the plugin does not say CASCADE."""
        return f'{{"action":"T","schema":{quote(relation.schema)},"table":{quote(relation.table)}}}\n'

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        """Write a message of ``pg_logical_emit_message``."""
        text = quote(content.decode("utf-8", "surrogateescape"))
        return f'{{"action":"M","transactional":{_bool(transactional)},"prefix":{quote(prefix)},"content":{text}}}\n'

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        """Fail: the format has no word for it, and such slots are refused before."""
        raise ValueError(f"{verb} has no form in this format")


class _Wal2jsonWriter:
    __slots__ = ("_delete", "_entries", "_full", "_head", "_identity", "_insert", "_key", "_update")

    def __init__(self, relation: Relation, type_names: Sequence[str]) -> None:
        self._entries = [
            f'{{"name":{quote(column.name)},"type":{_type_name(name)},"value":'
            for column, name in zip(relation.columns, type_names, strict=True)
        ]
        self._head = f'"schema":{quote(relation.schema)},"table":{quote(relation.table)}'
        self._full = relation.replica_identity == "f"
        every = list(range(len(relation.columns)))
        self._key = every if self._full else [n for n, column in enumerate(relation.columns) if column.is_key]
        self._insert = template([f'{{"action":"I",{self._head},"columns":[', *self._list(every), "]}\n"])
        self._update = template(
            [
                f'{{"action":"U",{self._head},"columns":[',
                *self._list(every),
                '],"identity":[',
                *self._list(self._key),
                "]}\n",
            ]
        )
        self._delete = template([f'{{"action":"D",{self._head},"identity":[', *self._list(self._key), "]}\n"])

    def _list(self, numbers: Sequence[int]) -> list[str | int]:
        parts: list[str | int] = []
        for position, number in enumerate(numbers):
            parts += [("," if position else "") + self._entries[number], number, "}"]
        return parts

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        return self._insert(new)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        if old is None and None not in new:
            return self._update(new)
        known = [n for n in range(len(self._entries)) if new[n] is not None]
        identity = new if old is None else old
        columns = template(self._list(known))(new)
        return f'{{"action":"U",{self._head},"columns":[{columns}],"identity":[{self._old(identity)}]}}\n'

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        return f'{{"action":"D",{self._head},"identity":[{self._old(old)}]}}\n'

    def _old(self, values: Values) -> str:
        return template(self._list([n for n in self._key if values[n] is not None]))(values)


class PrettyFormat(_ChangesOnly):
    """For eyes: one line a change, in colours where they are wanted."""

    _COLOURS: Final = {"INSERT": "32", "UPDATE": "33", "DELETE": "31", "TRUNCATE": "35", "MESSAGE": "36"}

    def __init__(self, catalog: Catalog, *, colour: bool) -> None:
        super().__init__(catalog)
        self._colour = colour

    def writer(self, relation: Relation) -> Writer:
        """Return what writes a relation's changes."""
        return _PrettyWriter(self, relation, key_numbers(relation, self._catalog))

    def truncate(
        self,
        relation: Relation,
        cascade: bool,
        restart_identity: bool,
        lsn: str,
        tx: Transaction,
        seq: int,  # noqa: ARG002
    ) -> str:
        """Write a TRUNCATE of one table."""
        words = ("CASCADE " if cascade else "") + ("RESTART IDENTITY" if restart_identity else "")
        return self.line("TRUNCATE", f"{relation.schema}.{relation.table}", words.strip(), lsn, tx)

    def message(self, prefix: str, content: bytes, transactional: bool, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        """Write a message."""
        return self.line("MESSAGE", prefix, quote(text_of(content)[0]), lsn, tx)

    def resolution(self, verb: str, gid: str, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        """Write what became of a prepared transaction."""
        return self.line(verb.replace("_", " ").upper(), quote(gid), "", lsn, tx)

    def line(self, verb: str, subject: str, rest: str, lsn: str, tx: Transaction) -> str:
        """Write one line: commit time, position, transaction, verb, table, values."""
        # Names and values are anybody's; a line is one line.
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

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        return self._format.line("INSERT", self._subject, self._pairs(new), lsn, tx)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
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

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:  # noqa: ARG002
        numbers = range(len(self._names)) if whole or not self._key else self._key
        pairs = " ".join(f"{self._names[n]}={old[n]}" for n in numbers)
        return self._format.line("DELETE", self._subject, pairs, lsn, tx)

    def _pairs(self, values: Values) -> str:
        return " ".join(f"{name}={value}" for name, value in zip(self._names, values, strict=False))


def _type_name(name: str) -> str:
    """Print a type's name as the plugin does: a name that SQL quotes already is not quoted again.

    Where that would be no JSON (quotes inside, or an array of such a type) ours is, and the plugin's is not.
    """
    return name if name[0] == name[-1] == '"' and '""' not in name and "\\" not in name else quote(name)


def _bool(value: bool) -> str:
    return "true" if value else "false"
