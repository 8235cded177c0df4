"""Audit trail and slot protection of ``slot drop``, ``slot advance`` and ``slot prune``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rdsrepl import config
from rdsrepl.apply import Cancelled
from rdsrepl.cli.console import note
from rdsrepl.cli.context import LogFormat, global_options
from rdsrepl.errors import Error, OutcomeUnknown, Refused
from rdsrepl.plan import Statement
from rdsrepl.render import document
from rdsrepl.snapshot import state_file
from rdsrepl.snapshot.state import StreamIdentity
from rdsrepl.state import audit, streamed_slots
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import json_text
from rdsrepl.text.masking import masked

if TYPE_CHECKING:
    import typer

    from rdsrepl.config import Target
    from rdsrepl.plan import Step
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.slots import Slot


class SlotAudit:
    """Writes an intent before and an outcome after each drop or advance to the audit file.

    A drop and an advance discard changes permanently. With ``--log-format json`` stderr gets the outcomes as well;
    otherwise one line at the end names the file.
    """

    def __init__(
        self,
        ctx: typer.Context,
        conn: Connection,
        command: str,
        slots: Mapping[str, Slot],
        *,
        advances: bool = False,
        check: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Record the server, the database and the user.

        Args:
            ctx: the command's context.
            conn: the connection on which the steps were planned.
            command: the command: ``slot prune``.
            slots: the slots that the plan acts on, by name, which is the key of their step.
            advances: whether the slots are advanced, not dropped.
            check: called with a slot's name before its step; raises ``Refused`` to keep the slot.
        """
        from rdsrepl.postgres import server_identity

        info = conn.info
        self._ctx = ctx
        self._written = 0
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
            Refused: the audit file is not writable, or the check failed; the step is not run.
        """
        if (slot := self._slot(step)) is not None:
            self._check(slot.slot_name)
            audit.append(self._entry("intent", step, slot))

    def after(self, step: Step, failure: BaseException | None) -> None:
        """Write the outcome: ``dropped``, ``not_dropped`` or ``unknown``; to stderr if the file is not writable."""
        if (slot := self._slot(step)) is None:
            return
        if failure is None and self._event == "slot_drop":
            streamed_slots.delete(self._where["server"], slot.slot_name)
            state_file.forget(StreamIdentity(self._where["server"], slot.database or "", slot.slot_name))
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
            self._written += 1
        except Refused as exc:
            sys.stderr.write(json_text(masked({**entry, "audit": exc.message})) + "\n")
            return
        if global_options(self._ctx).log_format is LogFormat.json:
            sys.stderr.write(line + "\n")

    def __enter__(self) -> SlotAudit:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._written and global_options(self._ctx).log_format is LogFormat.text:
            note(self._ctx, f"audit: {counted(self._written, 'outcome')} written to {audit.audit_file()}")

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
    """Return whether the server may or may not have run the statement."""
    return isinstance(failure, OutcomeUnknown) or not isinstance(failure, (Error, Cancelled))


def protected_patterns(target: Target) -> tuple[str, ...]:
    """Return the patterns of the slots that the config file protects on this server.

    They are the patterns for all targets, of this target, and of every target with the same cluster or instance.
    """
    loaded = config.load()
    here = (target.aws.cluster, target.aws.instance)
    same = [
        one for one in loaded.targets.values() if target.aws.identifier and (one.aws.cluster, one.aws.instance) == here
    ]
    patterns = [*loaded.protect, *target.protect, *(pattern for one in same for pattern in one.protect)]
    return tuple(dict.fromkeys(patterns))


def require_unprotected(name: str, target: Target, unprotected: frozenset[str]) -> None:
    """Check that the config file does not protect a slot.

    Raises:
        Refused: it protects the slot, and ``--unprotect`` does not name the slot.
    """
    pattern = next((one for one in protected_patterns(target) if fnmatchcase(name, one)), None)
    if pattern is not None and name not in unprotected:
        raise Refused(
            f"slot {name} is protected ({pattern} in {config.config_path()})",
            hint=f"to drop it nevertheless: --unprotect {name}",
        )
