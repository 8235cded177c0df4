"""Modifications that RDS has queued for the maintenance window: ``PendingModifiedValues`` of clusters and instances."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from rdsrepl.errors import Refused
from rdsrepl.text.commands import shell
from rdsrepl.text.masking import MASK

# Modifications by resource: ``instance orders-1``.
Queued = Mapping[str, Mapping[str, str]]

_SECRETS: Final = frozenset({"MasterUserPassword"})


def parse(values: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the queued modifications as text, by their name in the API; a password is masked.

    Args:
        values: ``PendingModifiedValues`` of a describe response; unknown members are included.
    """
    return {
        name: MASK if name in _SECRETS else value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in (values or {}).items()
        if value not in (None, {}, [])
    }


def text(queued: Queued) -> str:
    """Return modifications as one line: ``instance orders-1: EngineVersion 17.2, MultiAZ true``."""
    return "; ".join(
        f"{what}: {', '.join(f'{name} {value}' for name, value in values.items())}"
        for what, values in queued.items()
        if values
    )


def check_reboot(queued: Queued, *, allowed: bool) -> tuple[str, ...]:
    """Refuse a reboot that may apply queued modifications; return a warning if that is allowed.

    "Some parameter changes can cause an outage and are applied on the next call to RebootDBInstance, or the next
    failure reboot" (RDS API reference, ModifyDBInstance, ApplyImmediately).

    Args:
        queued: the modifications by resource: ``instance orders-1``.
        allowed: whether the reboot may apply them.

    Raises:
        Refused: modifications are queued, and the reboot may not apply them.
    """
    nonempty = {what: values for what, values in queued.items() if values}
    if not nonempty:
        return ()
    if not allowed:
        kind, _, identifier = next(iter(nonempty)).partition(" ")
        raise Refused(
            f"the reboot may apply queued modifications: {text(nonempty)}",
            hint="apply them first: "
            + shell(f"aws rds modify-db-{kind} --db-{kind}-identifier {{}} --apply-immediately", identifier)
            + "; or allow it with --with-pending",
        )
    return (f"the reboot may apply queued modifications: {text(nonempty)}",)


def kept(queued: Queued) -> tuple[str, ...]:
    """Return a warning about queued modifications that a plan does not apply."""
    queued_text = text(queued)
    return (f"queued modifications stay queued: {queued_text}",) if queued_text else ()
