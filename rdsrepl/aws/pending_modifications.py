"""Modifications that RDS has queued for the maintenance window: ``PendingModifiedValues`` of clusters and instances."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from rdsrepl.errors import Refused
from rdsrepl.text.commands import shell
from rdsrepl.text.masking import MASK

# By what is queued on it.
Queued = Mapping[str, Mapping[str, str]]

_SECRETS: Final = frozenset({"MasterUserPassword"})


def parse(values: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the queued modifications as text, by the API's name; a password is masked.

    Args:
        values: ``PendingModifiedValues`` of a describe; members that AWS adds later are taken over as they are.
    """
    return {
        name: MASK if name in _SECRETS else value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in (values or {}).items()
        if value not in (None, {}, [])
    }


def text(queued: Queued) -> str:
    """Return modifications in words: ``instance orders-1: EngineVersion 17.2, MultiAZ true``."""
    return "; ".join(
        f"{what}: {', '.join(f'{name} {value}' for name, value in values.items())}"
        for what, values in queued.items()
        if values
    )


def check_reboot(queued: Queued, *, allowed: bool) -> tuple[str, ...]:
    """Refuse a reboot that may set off queued modifications; return what to warn of when that is allowed.

    "Some parameter changes can cause an outage and are applied on the next call to RebootDBInstance, or the next
    failure reboot" (RDS API reference, ModifyDBInstance, ApplyImmediately).

    Args:
        queued: by what they are queued on: ``instance orders-1``.
        allowed: whether they may be set off.

    Raises:
        Refused: some are queued, and they may not be set off.
    """
    found = {what: values for what, values in queued.items() if values}
    if not found:
        return ()
    if not allowed:
        kind, _, identifier = next(iter(found)).partition(" ")
        raise Refused(
            f"queued modifications may take effect at the reboot: {text(found)}",
            hint="apply them first: "
            + shell(f"aws rds modify-db-{kind} --db-{kind}-identifier {{}} --apply-immediately", identifier)
            + "; or allow it: add --with-pending",
        )
    return (f"queued modifications may take effect at the reboot: {text(found)}",)


def kept(queued: Queued) -> tuple[str, ...]:
    """Return what to say of queued modifications that a plan does not set off."""
    words = text(queued)
    return (f"queued modifications stay queued: {words}",) if words else ()
