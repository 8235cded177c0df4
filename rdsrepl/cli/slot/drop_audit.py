"""What ``slot drop``, ``advance`` and ``prune`` share: the audit trail of what cannot be undone, and the protection."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rdsrepl import config
from rdsrepl.apply import Cancelled
from rdsrepl.errors import Error, OutcomeUnknown, Refused
from rdsrepl.plan import Statement
from rdsrepl.render import document
from rdsrepl.state import audit, streamed_slots
from rdsrepl.text.escapes import json_text
from rdsrepl.text.masking import masked

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.plan import Step
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.slots import Slot


class SlotAudit:
    """Writes an intent before and an outcome after each drop or advance, to the audit file; the outcome to stderr, too.

    Both give up changes for ever.
    """

    def __init__(
        self,
        conn: Connection,
        command: str,
        slots: Mapping[str, Slot],
        *,
        advances: bool = False,
        check: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take note of where it happens.

        Args:
            conn: the database the steps are planned on.
            command: what was asked for: ``slot prune``.
            slots: the slots that the plan acts on, by name, which is the key of their step.
            advances: they are advanced, not dropped.
            check: is called with a slot's name before anything is done to it; raises ``Refused`` where that may not be.
        """
        from rdsrepl.postgres import server_identity

        info = conn.info
        self._slots = slots
        self._check = check
        self._event, self._done = ("slot_advance", "advanced") if advances else ("slot_drop", "dropped")
        self._where = {
            **audit.process_identity(),
            "command": command,
            "server": server_identity.identifier(conn),
            "host": info.host,
            "port": info.port,
            "database": info.dbname,
            "database_user": info.user,
        }

    def before(self, step: Step) -> None:
        """Write the intent.

        Raises:
            Refused: it cannot be written, or the slot may not go; then nothing is done.
        """
        if (slot := self._slot(step)) is not None:
            self._check(slot.slot_name)
            audit.append(self._entry("intent", step, slot))

    def after(self, step: Step, failure: BaseException | None) -> None:
        """Write the outcome: ``dropped``, ``not_dropped`` or ``unknown``; what is done is done, written or not."""
        if (slot := self._slot(step)) is None:
            return
        if failure is None and self._event == "slot_drop":
            streamed_slots.delete(self._where["server"], slot.slot_name)
        outcome = self._done if failure is None else "unknown" if _is_outcome_unknown(failure) else f"not_{self._done}"
        entry = self._entry("outcome", step, slot, outcome=outcome)
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

    def _slot(self, step: Step) -> Slot | None:
        return self._slots.get(step.key) if isinstance(step, Statement) else None

    def _entry(self, phase: str, step: Step, slot: Slot, **more: str) -> dict[str, Any]:
        return {
            "event": self._event,
            "phase": phase,
            **more,
            **self._where,
            "summary": step.summary,
            "slot": document(slot),
        }


def _is_outcome_unknown(failure: BaseException) -> bool:
    """Say whether nobody knows how it ended."""
    return isinstance(failure, OutcomeUnknown) or not isinstance(failure, (Error, Cancelled))


def protected_patterns(target: Target) -> tuple[str, ...]:
    """Return the patterns of slots that the config file protects here, whichever option selected the server.

    They are those for all targets, the target's own, and those of every target with the same cluster or instance.
    """
    loaded = config.load()
    here = (target.aws.cluster, target.aws.instance)
    same = [
        one for one in loaded.targets.values() if target.aws.identifier and (one.aws.cluster, one.aws.instance) == here
    ]
    found = [*loaded.protect, *target.protect, *(pattern for one in same for pattern in one.protect)]
    return tuple(dict.fromkeys(found))


def require_unprotected(name: str, target: Target, unprotected: frozenset[str]) -> None:
    """Make sure that the config file does not protect a slot, on all servers or on this target.

    Raises:
        Refused: it does, and the slot is not named as an exception.
    """
    pattern = next((one for one in protected_patterns(target) if fnmatchcase(name, one)), None)
    if pattern is not None and name not in unprotected:
        raise Refused(
            f"slot {name} is protected ({pattern} in {config.config_path()})",
            hint=f"if it is to go all the same: --unprotect {name}",
        )
