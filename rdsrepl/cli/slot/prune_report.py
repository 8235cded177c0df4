"""What ``slot prune`` reports: the slots it drops or keeps with the reasons, for a person and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from rdsrepl.cli.context import global_options
from rdsrepl.plan import Plan, Statement
from rdsrepl.render import facts, say, stacked, styled
from rdsrepl.retention import assessment
from rdsrepl.text.commands import command
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rdsrepl.retention.prune_rules import PruneDecision
    from rdsrepl.retention.server_state import ServerState

_SHOWN_KEPT: Final = 20


def count(number: int) -> str:
    """Return a number of slots in words: ``2 slots``."""
    return f"{number} slot{'' if number == 1 else 's'}"


def explain(
    ctx: typer.Context, state: ServerState, decisions: Sequence[PruneDecision], *, advance: bool, to_stdout: bool
) -> None:
    """Say what is to go, what is lost with it, and why the others stay: on stderr, or stdout where that is all."""
    candidates = [one for one in decisions if one.is_candidate]
    parts: list[object] = []
    for one in candidates:
        parts += [styled(one.slot.slot_name, "bold"), facts(_facts(one, advance=advance)), ""]
    if candidates and not advance:
        freed, keeper = assessment.freed_by_dropping([one.slot.slot_name for one in candidates], state.slots, state.wal)
        held = max((one.slot.retained_bytes or 0 for one in candidates), default=0)
        kept = f"; slot {keeper} keeps the rest" if keeper is not None else ""
        if keeper is None and freed < held:
            kept = f"; wal_keep_size ({format_size(state.wal.keep_bytes)}) keeps the rest"
        parts.append(f"Freed altogether: about {format_size(freed)} of WAL, at the next checkpoint{kept}")
    kept_slots = [one for one in decisions if one.blockers and one.blockers[0].rule != "not_selected"]
    if kept_slots:
        parts.append("Kept:" if candidates else "Nothing to prune. Kept:")
        lines = [
            (f"  {one.slot.slot_name}", "; ".join(blocker.reason for blocker in one.blockers))
            for one in kept_slots[:_SHOWN_KEPT]
        ]
        if len(kept_slots) > _SHOWN_KEPT:
            lines.append(("  …", f"and {len(kept_slots) - _SHOWN_KEPT} more: --dry-run -o json has all"))
        parts.append(facts(lines))
    if parts and not global_options(ctx).quiet:
        say(stacked(*parts), to_stdout=to_stdout, plain=global_options(ctx).no_color)


def _facts(one: PruneDecision, *, advance: bool) -> list[tuple[str, object]]:
    """Return what a person must know before a slot goes."""
    slot, retention = one.slot, one.retention
    rows: list[tuple[str, object]] = [
        ("  what", f"{slot.plugin or 'physical'}, database {slot.database}, {slot.wal_status or 'no WAL'}"),
        ("  idle", one.idleness.text),
        ("  last consumer", one.last_consumer or one.owner or "none was seen by earlier runs"),
    ]
    if one.owner is not None:
        rows.append(("  belongs to", f"{one.owner}: be sure that it is gone"))
    held = "no WAL any more" if slot.retained_bytes is None else f"{format_size(slot.retained_bytes)} of WAL"
    alone = "" if retention.shared_with is None else f" (alone it frees {format_size(retention.freed_bytes)}: "
    alone += "" if retention.shared_with is None else f"{retention.shared_with} holds the rest as well)"
    rows.append(("  holds", held + alone))
    if retention.xid_age:
        rows.append(("  keeps from VACUUM", f"{retention.xid_age:,} transactions"))
    rows += [("  if it stays", f"{forecast.reason}; {_when(forecast.seconds)}") for forecast in retention.breaks[:1]]
    rows.append(("  lost for ever", _lost(one)))
    if not advance:
        # The comment stands by itself: broken by the terminal's width it would be no comment any more.
        again, _, comment = one.recreate.partition("  # ")
        rows += [("  to make it again", again), *([("", comment)] if comment else [])]
        if slot.slot_type == "logical" and not slot.is_lost:
            instead = command("slot advance {} --to-current", slot.slot_name)
            rows.append(("  instead", f"{instead} keeps it, not its backlog"))
    return rows


def _when(seconds: float) -> str:
    return f"in about {format_duration(seconds)}" if seconds else "now"


def _lost(one: PruneDecision) -> str:
    slot = one.slot
    if slot.is_lost:
        return "nothing more: its changes are gone already"
    if slot.slot_type != "logical":
        return "its standby must be built anew, unless it has all it needs elsewhere"
    if slot.lag_bytes == 0:
        return "nothing: everything was consumed"
    size = "an unknown amount" if slot.lag_bytes is None else format_size(slot.lag_bytes)
    seconds = one.retention.lag_seconds
    oldest = "" if seconds is None else f", the oldest about {format_duration(seconds)} old"
    return f"the changes in {size} of WAL after {slot.confirmed_flush_lsn}{oldest}"


def document(state: ServerState, decisions: Sequence[PruneDecision], plan: Plan) -> dict[str, Any]:
    """Return everything for a review: the keys are a contract (docs/prune.md)."""
    candidates = [one for one in decisions if one.is_candidate]
    freed, keeper = assessment.freed_by_dropping([one.slot.slot_name for one in candidates], state.slots, state.wal)
    return {
        "at": state.wal.at,
        "server": state.server,
        "title": plan.title,
        "status": "planned" if plan else "unchanged",
        "freed_bytes": freed,
        "freed_limited_by": keeper,
        "statements": [step.text for step in plan.steps if isinstance(step, Statement)],
        "candidates": [_row(one) for one in candidates],
        "kept": [_row(one) for one in decisions if not one.is_candidate],
    }


def _row(one: PruneDecision) -> dict[str, Any]:
    retention = one.retention
    return {
        "slot_name": one.slot.slot_name,
        "owner": one.owner,
        "last_consumer": one.last_consumer,
        "idle_seconds": one.idleness.seconds,
        "idle_proof": one.idleness.proof,
        "retained_bytes": retention.retained_bytes,
        "undelivered_bytes": retention.undelivered_bytes,
        "undelivered_seconds": retention.lag_seconds,
        "xid_age": retention.xid_age,
        "freed_bytes": retention.freed_bytes,
        "shared_with": retention.shared_with,
        "breaks": retention.breaks,
        "recreate": one.recreate,
        "obstacles": one.blockers,
        "slot": one.slot,
    }
