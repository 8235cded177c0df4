"""What only the server can prove, as probes for a plan's waits: settings that hold, slots that are still there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from rdsrepl.config import Target
from rdsrepl.plan import Condition, Wait
from rdsrepl.postgres import connection

PROOF_SECONDS: Final = 120.0
# What this program has set for its own session says nothing of the server.
_SETTINGS: Final = """
SELECT name, CASE source WHEN 'session' THEN reset_val ELSE setting END, pending_restart
  FROM pg_catalog.pg_settings WHERE name = ANY(%s)
"""
_SLOTS: Final = """
SELECT slot_name::text, confirmed_flush_lsn::text, wal_status
FROM pg_catalog.pg_replication_slots
WHERE slot_type = 'logical' AND NOT temporary AND slot_name = ANY(%s)
"""


def settings(expected: Mapping[str, str]) -> Wait:
    """Return the step that proves parameters over SQL.

    Args:
        expected: values as ``pg_settings.setting`` has them, by name.
    """
    shown = ", ".join(f"{name} = {value}" for name, value in expected.items())
    return Wait(f"prove it over SQL: {shown}", partial(_settings, expected=dict(expected)), PROOF_SECONDS)


def slots(names: Sequence[str]) -> Wait:
    """Return the step that proves over SQL that the endpoint leads to a writer, and how far each slot is there."""
    what = f"the writer has slots {', '.join(names)}" if names else "the endpoint leads to the writer"
    return Wait(f"prove over SQL that {what}", partial(_slots, names=tuple(names)), PROOF_SECONDS)


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
            return Condition(False, "the endpoint still leads to a standby")
        rows = {row[0]: (row[1], row[2]) for row in conn.execute(_SLOTS, (list(names),))}
    missing = [name for name in names if name not in rows]
    lost = [name for name, (_, status) in rows.items() if status == "lost"]
    facts = {name: f"at {rows[name][0]}, {rows[name][1]}" for name in names if name in rows}
    if lost:
        return Condition(
            False,
            f"lost: {', '.join(lost)}",
            failed=f"the server gave up {', '.join(lost)}",
            remedy="their changes are gone: make them again and copy the tables anew (rdsrepl slot drop NAME)",
        )
    return Condition(not missing, f"not there: {', '.join(missing)}" if missing else "all there", facts=facts)
