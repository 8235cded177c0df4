"""The changes of a table without a key, while its rows are copied in a snapshot of the server at a position.

Without a key nothing connects a change with a copied row, so the order must: first a truncate, then the rows as of the
position, then every change since the position. Until the truncate is written, changes are written as usual and kept as
well. After it they are only kept, and written behind the rows. What is kept belongs to this process: if the copy ends
early, it begins again with a later position and another truncate, and the rows of that position contain the changes.

Only the thread of the stream uses an object, except for ``since``, which the reader's thread sets.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Final

from rdsrepl.lsn import Lsn
from rdsrepl.postgres.table_structures import TableName
from rdsrepl.tail.formats.base import RowWriter, Values
from rdsrepl.tail.model import Relation, Transaction

# Kept changes may have this size in memory; further ones are in a temporary file.
_MOST_BYTES: Final = 32 << 20


class HeldChanges:
    """The changes of one table, in the order of the stream.

    Attributes:
        name: the table.
        since: changes that committed before this position are not needed: the rows contain them.
        is_withheld: whether the truncate was written, and changes are not.
        is_over: whether nothing is kept any more, and changes are written as usual.
        failure: why changes could not be kept; None if they were.
    """

    def __init__(self, name: TableName, since: Lsn) -> None:
        self.name = name
        self.since = since
        self.is_withheld = self.is_over = False
        self.failure: str | None = None
        self._relations: list[tuple[Relation, RowWriter]] = []
        # The oldest changes are in memory, the others in the file.
        self._memory: deque[bytes] = deque()
        self._size = 0
        self._file: IO[bytes] | None = None
        self._read_to = self._written_to = 0
        self._tx: Transaction | None = None
        self._commit_lsn = 0

    def writer(self, relation: Relation, inner: RowWriter) -> RowWriter:
        """Return what keeps the changes of the table, and writes them with INNER unless they are withheld."""
        if self.is_over:
            return inner
        self._relations.append((relation, inner))
        return _HoldingWriter(self, len(self._relations) - 1, inner)

    def truncate(self, relation: Relation, cascade: bool, restart_identity: bool, tx: Transaction) -> bool:
        """Keep a TRUNCATE; return whether it is withheld."""
        if self.is_over:
            return False
        number = next(n for n, (known, _) in enumerate(self._relations) if known is relation)
        self.keep(tx, "truncate", number, (cascade, restart_identity))
        return self.is_withheld

    def keep(self, tx: Transaction, kind: str, number: int, values: tuple[Any, ...]) -> None:
        """Keep a change.

        Args:
            tx: its transaction.
            kind: the method that writes it.
            number: of the relation.
            values: what the method takes first.
        """
        if tx is not self._tx:
            self._tx, self._commit_lsn = tx, Lsn.parse(tx.commit_lsn)
        if self._commit_lsn < self.since or self.is_over:
            return
        change = pickle.dumps((self._commit_lsn, kind, number, values))
        if self._file is None and self._size + len(change) <= _MOST_BYTES:
            self._memory.append(change)
            self._size += len(change)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="rdsrepl-")  # noqa: SIM115 - until close()
            self._file.seek(self._written_to)
            self._file.write(len(change).to_bytes(8) + change)
            self._written_to = self._file.tell()
        except OSError as exc:
            self.close()
            self.failure = (
                f"could not keep the changes during the copy in a temporary file: {exc.strerror or exc}; set TMPDIR to "
                "a directory with more space"
            )

    def written(
        self, truncate: Callable[..., str], lsn: str, tx: Transaction, first: int, most_bytes: int
    ) -> list[bytes]:
        """Return the oldest changes, each as its line or lines; they are no longer kept.

        Args:
            truncate: writes a TRUNCATE; ``Format.truncate``.
            lsn: the position of the marker in whose place they stand.
            tx: the transaction of the marker.
            first: the number of the first change.
            most_bytes: about how large they may be together.
        """
        lines: list[bytes] = []
        size = 0
        while size < most_bytes and (change := self._oldest()) is not None:
            commit_lsn, kind, number, values = pickle.loads(change)
            if commit_lsn < self.since:
                continue
            size += len(change)
            relation, inner = self._relations[number]
            seq = first + len(lines)
            if kind == "truncate":
                line = truncate(relation, *values, lsn, tx, seq)
            else:
                line = getattr(inner, kind)(*values, lsn, tx, seq)
            lines.append(line.encode("utf-8", "surrogateescape"))
        return lines

    @property
    def is_empty(self) -> bool:
        """Whether no change is kept."""
        return not self._memory and self._read_to == self._written_to

    def close(self) -> None:
        """Forget everything: the copy ended, or begins again."""
        self.is_over, self.is_withheld = True, False
        self._memory.clear()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file, self._read_to, self._written_to = None, 0, 0

    def _oldest(self) -> bytes | None:
        if self._memory:
            change = self._memory.popleft()
            self._size -= len(change)
            return change
        if self._file is None:
            return None
        if self._read_to == self._written_to:
            self._file.close()
            self._file, self._read_to, self._written_to = None, 0, 0
            return None
        self._file.seek(self._read_to)
        change = self._file.read(int.from_bytes(self._file.read(8)))
        self._read_to = self._file.tell()
        return change


class _HoldingWriter:
    """Keeps the changes of a relation, and writes them unless they are withheld."""

    __slots__ = ("_held", "_inner", "_number")

    def __init__(self, held: HeldChanges, number: int, inner: RowWriter) -> None:
        self._held, self._number, self._inner = held, number, inner

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        self._held.keep(tx, "insert", self._number, (new,))
        return "" if self._held.is_withheld else self._inner.insert(new, lsn, tx, seq)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        self._held.keep(tx, "update", self._number, (new, old, whole))
        return "" if self._held.is_withheld else self._inner.update(new, old, whole, lsn, tx, seq)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        self._held.keep(tx, "delete", self._number, (old, whole))
        return "" if self._held.is_withheld else self._inner.delete(old, whole, lsn, tx, seq)


class LaterWriter:
    """Leaves out changes that the output has under another identity, if the server sends them again."""

    __slots__ = ("_inner", "_is_written")

    def __init__(self, inner: RowWriter, is_written: Callable[[Transaction], bool]) -> None:
        """Wrap INNER; IS_WRITTEN returns whether the output has the changes of a transaction."""
        self._inner, self._is_written = inner, is_written

    def insert(self, new: Values, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an INSERT, if the output does not have it."""
        return "" if self._is_written(tx) else self._inner.insert(new, lsn, tx, seq)

    def update(self, new: Values, old: Values | None, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write an UPDATE, if the output does not have it."""
        return "" if self._is_written(tx) else self._inner.update(new, old, whole, lsn, tx, seq)

    def delete(self, old: Values, whole: bool, lsn: str, tx: Transaction, seq: int) -> str:
        """Write a DELETE, if the output does not have it."""
        return "" if self._is_written(tx) else self._inner.delete(old, whole, lsn, tx, seq)
