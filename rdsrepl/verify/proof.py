"""Read the rows that differed again, on both sides, until each is cleared or proven; ``row_state`` decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Final

from rdsrepl.postgres.commit_visibility import wait_until_visible
from rdsrepl.verify import limited, statements
from rdsrepl.verify.links import Link, wait_until_applied
from rdsrepl.verify.row_state import NOT_READ, Reading, Round, RowState, evaluate
from rdsrepl.verify.statements import Key, Side

if TYPE_CHECKING:
    from rdsrepl.postgres.connection import Connection

#: Returns the rows with these keys that exist.
ReadRows = Callable[[Sequence[Key]], Mapping[Key, Reading]]

_KEYS_PER_STATEMENT: Final = 1_000
# Without an index, each statement reads the table.
_KEYS_PER_SCAN: Final = 20_000


@dataclass(frozen=True, slots=True)
class Proof:
    """How rows are read and waited for.

    Attributes:
        source: a connection to the primary.
        link: how the target gets the changes.
        read_source, read_target: return the rows that exist, of those asked for.
        timeout_seconds: after this time the rows that are left are not proven.
        progress: called before each round with the number of rows that are left.
        back: a connection to the target, and how the source gets its changes; None if it does not.
        rounds: which rounds are long, again and again. A row that only the target has needs two of them; one that
            changes often needs short ones.
    """

    source: Connection
    link: Link
    read_source: ReadRows
    read_target: ReadRows
    timeout_seconds: float
    progress: Callable[[int], None]
    back: tuple[Connection, Link] | None = None
    rounds: tuple[bool, ...] = (False, True, True, False, False, False)

    def run(self, suspects: Sequence[Key]) -> dict[Key, tuple[RowState, Round]]:
        """Return the state of each suspect, and the readings that led to it."""
        deadline = time.monotonic() + self.timeout_seconds
        states: dict[Key, tuple[RowState, Round]] = {}
        last: dict[Key, Round] = {}
        left = list(suspects)
        for is_long in cycle(self.rounds):
            if left:
                self.progress(len(left))
            rounds = self._round(left, deadline, is_long=is_long) if left else None
            if rounds is None:
                break
            for suspect, now in rounds.items():
                states[suspect] = evaluate(now, last.get(suspect)), now
            if is_long:
                last = rounds
            left = [suspect for suspect in left if states[suspect][0] is RowState.again]
            if time.monotonic() >= deadline:
                break
        return {suspect: states.get(suspect, (RowState.again, NOT_READ)) for suspect in suspects}

    def _round(self, suspects: Sequence[Key], deadline: float, *, is_long: bool) -> dict[Key, Round] | None:
        """Read each suspect four times; None if the target did not apply the changes in time.

        Where the source gets the changes of the target as well, it must have them too: a row that changed on the target
        since is not yet to be compared.
        """
        earlier: Mapping[Key, Reading] | None = None
        if self.back is not None:
            earlier = self.read_target(suspects)
            conn, link = self.back
            if not wait_until_applied(conn, link, deadline):
                return None
        before = self.read_source(suspects)
        if not wait_until_applied(self.source, self.link, deadline):
            return None
        near = self.read_source(suspects)
        target = self.read_target(suspects)
        # The target may have applied commits that are not yet visible on the source.
        if is_long and not wait_until_visible(self.source, lambda: time.monotonic() >= deadline):
            return None
        after = self.read_source(suspects)
        return {
            one: Round(
                before.get(one),
                near.get(one),
                target.get(one),
                after.get(one),
                is_long,
                target_changed=earlier is not None and earlier.get(one) != target.get(one),
            )
            for one in suspects
        }


def by_key(conn: Connection, side: Side) -> ReadRows:
    """Return the reader of rows by key."""

    def read(keys: Sequence[Key]) -> dict[Key, Reading]:
        found: dict[Key, Reading] = {}
        step = _KEYS_PER_STATEMENT if side.is_indexed else _KEYS_PER_SCAN
        for start in range(0, len(keys), step):
            some = keys[start : start + step]
            for part, rows in limited.in_parts(
                conn, some, partial(statements.lookup, side), is_limited=side.is_indexed
            ):
                found |= {part[place - 1]: Reading(*reading) for place, *reading in rows}
        return found

    return read
