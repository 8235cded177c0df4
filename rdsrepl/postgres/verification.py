"""Verify over SQL what a plan did: parameters in effect, slots that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, LiteralString

from rdsrepl.config import Target
from rdsrepl.errors import Error
from rdsrepl.plan import Condition, Wait
from rdsrepl.postgres import connection
from rdsrepl.postgres import slots as slot_rows

VERIFY_SECONDS: Final = 120.0
# reset_val: not what this program set for its own session.
_SELECT: Final = """
SELECT name, CASE source WHEN 'session' THEN reset_val ELSE setting END, pending_restart FROM pg_catalog.pg_settings
"""
_SETTINGS: Final = _SELECT + "WHERE name = ANY(%s)"
# A parameter of any name that needs a restart.
_RESTART: Final = _SELECT + "WHERE pending_restart OR name = ANY(%s)"
_STARTED: Final = "SELECT pg_catalog.pg_postmaster_start_time()::text"
_CONNECT_SECONDS: Final = "5"


@dataclass(frozen=True, slots=True)
class ServerProbe:
    """Checks a server over SQL; without a connection every answer is None.

    Attributes:
        expected: values as ``pg_settings.setting`` has them, by name.
    """

    expected: Mapping[str, str] = field(default_factory=dict)

    def started(self, target: Target) -> str | None:
        """Return the start time of the server; None where the server is not reachable."""
        rows = _query(target, _STARTED, ())
        return str(rows[0][0]) if rows else None

    def needs_restart(self, target: Target) -> bool | None:
        """Say whether a parameter needs a restart to take effect; None where the server is not reachable."""
        rows = _query(target, _RESTART, (list(self.expected),))
        if rows is None:
            return None
        return any(pending or self.expected.get(name, setting) != setting for name, setting, pending in rows)


def settings(expected: Mapping[str, str]) -> Wait:
    """Return the step that verifies parameters over SQL.

    Args:
        expected: values as ``pg_settings.setting`` has them, by name.
    """
    shown = ", ".join(f"{name} = {value}" for name, value in expected.items())
    return Wait(f"verify over SQL: {shown}", partial(_settings, expected=dict(expected)), VERIFY_SECONDS)


def slots(names: Sequence[str]) -> Wait:
    """Return the step that verifies over SQL that the endpoint is the writer and has the slots."""
    what = f"the writer has slots {', '.join(names)}" if names else "the endpoint is the writer"
    return Wait(f"verify over SQL that {what}", partial(_slots, names=tuple(names)), VERIFY_SECONDS)


def _query(target: Target, query: LiteralString, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]] | None:
    wanted = {"connect_timeout": _CONNECT_SECONDS, **target.keywords}
    try:
        with connection.open(replace(target, keywords=wanted), settings={"statement_timeout": "10s"}) as conn:
            return conn.execute(query, parameters).fetchall()
    except Error:
        return None


def _settings(target: Target, *, expected: Mapping[str, str]) -> Condition:
    with connection.open(target, settings={"statement_timeout": "10s"}) as conn:
        rows = {row[0]: (row[1], row[2]) for row in conn.execute(_SETTINGS, (list(expected),))}
    differ = [
        f"{name} is {rows[name][0] if name in rows else 'unknown'}"
        for name, value in expected.items()
        if name not in rows or rows[name][0] != value
    ]
    if any(pending for _, pending in rows.values()):
        differ.append("a restart is still pending")
    return Condition(not differ, "; ".join(differ), facts={name: rows[name][0] for name in expected if name in rows})


def _slots(target: Target, *, names: Sequence[str]) -> Condition:
    with connection.open(target, settings={"statement_timeout": "10s"}) as conn:
        if connection.in_recovery(conn):
            return Condition(False, "the endpoint is still a standby")
        present = {slot.slot_name: slot for slot in slot_rows.ls(conn) if slot.slot_name in names}
    missing = [name for name in names if name not in present]
    lost = [name for name, slot in present.items() if slot.is_lost]
    facts = {name: f"at {slot.confirmed_flush_lsn}, {slot.wal_status}" for name in names if (slot := present.get(name))}
    if lost:
        return Condition(
            False,
            f"invalidated: {', '.join(lost)}",
            failed=f"invalidated slots: {', '.join(lost)}",
            remedy="their changes are gone: drop each (rdsrepl slot drop NAME), create it, and copy the tables again",
        )
    return Condition(not missing, f"not found: {', '.join(missing)}" if missing else "all slots exist", facts=facts)
