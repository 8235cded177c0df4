"""Report of ``slot prune``: the slots it drops and keeps with the reasons, for a person and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from rdsrepl.cli.context import global_options
from rdsrepl.cli.hints import with_selectors
from rdsrepl.plan import Plan, Statement
from rdsrepl.render import facts, say, stacked, styled
from rdsrepl.retention import assessment
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from rdsrepl.retention.prune_rules import PruneDecision
    from rdsrepl.retention.server_state import ServerState

_SHOWN_KEPT: Final = 20
_SHOWN_CANDIDATES: Final = 20
_NAMED_LOSSES: Final = 3


def explain(
    ctx: typer.Context, state: ServerState, decisions: Sequence[PruneDecision], *, advance: bool, to_stdout: bool
) -> None:
    """Print which slots are dropped or advanced, what is lost, and why the other slots are kept."""
    candidates = [one for one in decisions if one.is_candidate]
    parts: list[object] = []
    for one in candidates[:_SHOWN_CANDIDATES]:
        parts += [styled(one.slot.slot_name, "bold"), facts(_facts(ctx, one, advance=advance)), ""]
    if len(candidates) > _SHOWN_CANDIDATES:
        more = len(candidates) - _SHOWN_CANDIDATES
        parts += [f"and {more:,} more, which retain less: the plan names them; all with --dry-run -o json", ""]
    if candidates and not advance:
        freed, keeper = assessment.freed_by_dropping([one.slot.slot_name for one in candidates], state.slots, state.wal)
        held = max((one.slot.retained_bytes or 0 for one in candidates), default=0)
        rest = assessment.not_freed_by(keeper, freed, held, state.wal)
        parts.append(f"Freed in total: about {format_size(freed)} of WAL at the next checkpoint{rest}")
    kept_slots = [one for one in decisions if one.blockers and one.blockers[0].rule != "not_selected"]
    if kept_slots:
        parts.append("Kept:" if candidates else "Nothing to prune. Kept:")
        lines = [
            (f"  {one.slot.slot_name}", "; ".join(blocker.reason for blocker in one.blockers))
            for one in kept_slots[:_SHOWN_KEPT]
        ]
        if len(kept_slots) > _SHOWN_KEPT:
            lines.append(("  …", f"and {len(kept_slots) - _SHOWN_KEPT} more: all with --dry-run -o json"))
        parts.append(facts(lines))
    if parts and not global_options(ctx).quiet:
        say(stacked(*parts), to_stdout=to_stdout, plain=global_options(ctx).no_color)


def consequences(acted_on: Sequence[PruneDecision]) -> tuple[str, ...]:
    """Return what is permanently lost with these slots, in few lines however many they are: the last before the prompt.

    Dropping and advancing lose the same.
    """
    losing = [one for one in acted_on if _loses_changes(one)]
    losing.sort(key=lambda one: -1 if one.slot.lag_bytes is None else one.slot.lag_bytes, reverse=True)
    named = ", ".join(f"{one.slot.slot_name} ({_undelivered(one)})" for one in losing[:_NAMED_LOSSES])
    more = f" and {len(losing) - _NAMED_LOSSES} more" if len(losing) > _NAMED_LOSSES else ""
    lines = [
        f"permanently lost: the undelivered changes of {counted(len(losing), 'slot')}: {named}{more}"
        if losing
        else "permanently lost: no changes; they were all consumed, or are already lost"
    ]
    physical = sum(one.slot.slot_type != "logical" for one in acted_on)
    if physical:
        slots = "1 physical slot: its standby" if physical == 1 else f"{physical} physical slots: each standby"
        lines.append(f"{slots} must be rebuilt, unless it gets its WAL from an archive")
    return tuple(lines)


def _loses_changes(one: PruneDecision) -> bool:
    return one.slot.slot_type == "logical" and not one.slot.is_lost and one.slot.lag_bytes != 0


def _undelivered(one: PruneDecision) -> str:
    return "an unknown amount of WAL" if one.slot.lag_bytes is None else f"{format_size(one.slot.lag_bytes)} of WAL"


def _facts(ctx: typer.Context, one: PruneDecision, *, advance: bool) -> list[tuple[str, object]]:
    """Return the facts to read before a slot is dropped or advanced."""
    slot, retention = one.slot, one.retention
    rows: list[tuple[str, object]] = [
        ("  what", f"{slot.plugin or 'physical'}, database {slot.database}, {slot.wal_status or 'no WAL'}"),
        ("  idle", one.idleness.text.removeprefix("idle ")),
        ("  last consumer", one.last_consumer or one.owner or "unknown: not active in earlier samples"),
    ]
    if one.owner is not None:
        rows.append(("  belongs to", f"{one.owner}: make sure that it no longer needs the slot"))
    held = "no WAL" if slot.retained_bytes is None else f"{format_size(slot.retained_bytes)} of WAL"
    if retention.shared_with is not None:
        held += (
            f" (dropping it alone frees {format_size(retention.freed_bytes)}: {retention.shared_with} retains the rest)"
        )
    rows.append(("  retains", held))
    if retention.xid_age:
        rows.append(("  holds back VACUUM", f"by {counted(retention.xid_age, 'transaction', grouped=True)}"))
    rows += [("  if kept", forecast.text) for forecast in retention.breaks[:1]]
    rows.append(("  permanently lost", _lost(one)))
    if not advance:
        rows.append(("  to create it again", one.recreate))
        if slot.slot_type == "logical" and not slot.is_lost:
            instead = command("slot advance {} --to-current", slot.slot_name)
            rows.append(("  to keep it", f"{with_selectors(ctx, instead)}, which discards its backlog"))
    return rows


def _lost(one: PruneDecision) -> str:
    slot = one.slot
    if slot.is_lost:
        return "nothing: its changes are already lost"
    if slot.slot_type != "logical":
        return "its standby must be rebuilt, unless it gets its WAL from an archive"
    if slot.lag_bytes == 0:
        return "nothing: all changes were consumed"
    size = "an unknown amount" if slot.lag_bytes is None else format_size(slot.lag_bytes)
    seconds = one.retention.lag_seconds
    oldest = "" if seconds is None else f", the oldest about {format_duration(seconds)} old"
    return f"the changes in {size} of WAL after {slot.confirmed_flush_lsn}{oldest}"


def document(state: ServerState, decisions: Sequence[PruneDecision], plan: Plan) -> dict[str, Any]:
    """Return the plan and the decisions for a review; docs/prune.md documents the keys."""
    candidates = [one for one in decisions if one.is_candidate]
    freed, keeper = assessment.freed_by_dropping([one.slot.slot_name for one in candidates], state.slots, state.wal)
    return {
        "at": state.wal.at,
        "server": state.server,
        "title": plan.title,
        "status": "planned" if plan else "unchanged",
        "freed_bytes": freed,
        "freed_limited_by": keeper,
        "counts": plan.counts,
        "warnings": plan.warnings,
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
