"""What ``slot drop`` and ``slot prune`` share: the audit trail of every drop, and the config file's protection."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rdsrepl import audit, config
from rdsrepl.apply import Cancelled
from rdsrepl.errors import Error, OutcomeUnknown, Refused
from rdsrepl.render import document
from rdsrepl.state import streamed_slots
from rdsrepl.text.escapes import json_text
from rdsrepl.text.masking import masked

if TYPE_CHECKING:
    from rdsrepl.plan import Step
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.slots import Slot


class DropTrail:
    """Writes an intent before and an outcome after each drop, to the audit file; the outcome to stderr, too."""

    def __init__(self, conn: Connection, command: str, dropped: Mapping[int, Slot]) -> None:
        """Take note of where the drops happen.

        Args:
            conn: the database they are planned on.
            command: what was asked for: ``slot prune``.
            dropped: the slots, by the identity of their steps.
        """
        from rdsrepl.postgres import wal

        info = conn.info
        self._dropped = dropped
        self._where = {
            **audit.who(),
            "command": command,
            "server": wal.server_identity(conn),
            "host": info.host,
            "port": info.port,
            "database": info.dbname,
            "database_user": info.user,
        }

    def before(self, step: Step) -> None:
        """Write the intent.

        Raises:
            Refused: it cannot be written; then nothing is dropped.
        """
        if (slot := self._dropped.get(id(step))) is not None:
            audit.append(self._entry("intent", slot))

    def after(self, step: Step, failure: BaseException | None) -> None:
        """Write the outcome: ``dropped``, ``not_dropped`` or ``unknown``; what is done is done, written or not."""
        if (slot := self._dropped.get(id(step))) is None:
            return
        if failure is None:
            streamed_slots.forget(self._where["server"], slot.slot_name)
        outcome = "dropped" if failure is None else "unknown" if _is_open(failure) else "not_dropped"
        entry = self._entry("outcome", slot, outcome=outcome)
        if failure is not None:
            entry["error"] = (
                failure.message
                if isinstance(failure, Error)
                else "interrupted"
                if isinstance(failure, KeyboardInterrupt)
                else type(failure).__name__
            )
        try:
            line = audit.append(masked(entry))
        except Refused as exc:
            line = json_text(masked({**entry, "audit": exc.message}))
        sys.stderr.write(line + "\n")

    def _entry(self, phase: str, slot: Slot, **more: str) -> dict[str, Any]:
        return {"event": "slot_drop", "phase": phase, **more, **self._where, "slot": document(slot)}


def _is_open(failure: BaseException) -> bool:
    """Say whether nobody knows how it ended."""
    return isinstance(failure, OutcomeUnknown) or not isinstance(failure, (Error, Cancelled))


def require_unprotected(name: str, unprotected: frozenset[str]) -> None:
    """Make sure that the config file does not protect a slot.

    Raises:
        Refused: it does, and the slot is not named as an exception.
    """
    loaded = config.load()
    pattern = next((one for one in loaded.protect if fnmatchcase(name, one)), None)
    if pattern is not None and name not in unprotected:
        raise Refused(
            f"slot {name} is protected ({pattern} in {loaded.path})",
            hint=f"if it is to go all the same: --unprotect {name}",
        )
