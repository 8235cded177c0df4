"""``rdsrepl slot prune``: drop the slots that are proven idle."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.completion import complete_slot, complete_target
from rdsrepl.cli.confirm import TypedConfirmation, confirm_and_apply
from rdsrepl.cli.console import log_event, note, warn
from rdsrepl.cli.context import LogFormat, apply_options, global_options
from rdsrepl.cli.hints import with_selectors
from rdsrepl.cli.options import duration_option, size_option
from rdsrepl.cli.progress import Progress
from rdsrepl.cli.saved_plans import pinned
from rdsrepl.cli.slot.drop_audit import SlotAudit, protected_patterns
from rdsrepl.cli.slot.prune_report import consequences, document, explain
from rdsrepl.cli.slot.server_state import read_rds_metrics, read_server_state
from rdsrepl.cli.targets import database_target, other_target
from rdsrepl.errors import BadValue, Error, NotFound, Refused
from rdsrepl.lsn import Lsn
from rdsrepl.plan import Plan
from rdsrepl.render import document as to_json
from rdsrepl.render import emit
from rdsrepl.retention import assessment
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from datetime import datetime

    from rdsrepl.plan import Step
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.server_identity import ServerIdentity
    from rdsrepl.postgres.slots import Slot
    from rdsrepl.retention.prune_rules import Criteria, PruneDecision
    from rdsrepl.retention.rds_metrics import RdsMetrics
    from rdsrepl.retention.server_state import ServerState, SlotSampler

_SELECTION: Final = "Slot selection"
_IDLENESS: Final = "Idle time"
# A named slot that only these rules keep is not selected by the options, so the command does not refuse.
_SELECTION_RULES: Final = frozenset({"not_selected", "too_small", "not_lost"})


def prune(
    ctx: typer.Context,
    slot: Annotated[
        list[str] | None,
        typer.Option(
            "--slot",
            metavar="NAME",
            help="Select a slot, or a pattern such as 'old_*'; may be repeated. Default: every logical slot.",
            autocompletion=complete_slot,
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    inactive_for: Annotated[
        float | None,
        duration_option(
            "--inactive-for",
            help="Require that a slot is proven idle for at least this long. Default: 1h.",
            panel=_IDLENESS,
        ),
    ] = None,
    retaining_over: Annotated[
        int | None,
        size_option("--retaining-over", help="Select only slots that retain more WAL than this.", panel=_SELECTION),
    ] = None,
    lost: Annotated[
        bool,
        typer.Option("--lost", help="Select only invalidated slots.", rich_help_panel=_SELECTION, show_default=False),
    ] = False,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Allow a pattern to select every logical slot of the server.",
            rich_help_panel=_SELECTION,
            show_default=False,
        ),
    ] = False,
    include_physical: Annotated[
        bool,
        typer.Option(
            "--include-physical",
            help="Also select physical slots, except those of RDS.",
            rich_help_panel=_SELECTION,
            show_default=False,
        ),
    ] = False,
    unprotect: Annotated[
        list[str] | None,
        typer.Option(
            "--unprotect",
            metavar="NAME",
            help="Select a slot although the config file protects it; may be repeated.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    subscriber: Annotated[
        list[str] | None,
        typer.Option(
            "--subscriber",
            metavar="TARGET",
            help="Keep the slots that subscriptions of this server use: a target or a connection string; repeatable.",
            autocompletion=complete_target,
            rich_help_panel=_IDLENESS,
        ),
    ] = None,
    observe: Annotated[
        float | None,
        duration_option(
            "--observe",
            help="Sample the slots for this long before PostgreSQL 17: slots without activity are idle.",
            panel=_IDLENESS,
        ),
    ] = None,
    free_space: Annotated[
        int | None, size_option("--free-space", help="Set the free storage for the forecast.", panel=_IDLENESS)
    ] = None,
    advance: Annotated[
        bool,
        typer.Option(
            "--advance",
            help="Advance the slots to the current position instead of dropping them: discard their backlog.",
            rich_help_panel=_SELECTION,
            show_default=False,
        ),
    ] = False,
    keep_last: Annotated[bool, typer.Option("--keep-last", hidden=True, help="Renamed to --advance.")] = False,
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", metavar="WORDS", help="Confirm --all without a prompt: 'N slots'."),
    ] = None,
) -> None:
    """Drop logical slots that are proven idle; show first what each retains and which changes are lost.

    Never dropped: a slot in use, a slot of RDS, a slot that a standby synchronizes, a slot that the config file
    protects. A failover slot, or a slot of a known consumer (DMS, pglogical, Debezium, a subscription), is dropped only
    if it is selected by name. Each statement checks again that the slot is unchanged. Each drop and each advance is
    written to the audit file.

    Example: rdsrepl slot prune --inactive-for 7d --retaining-over 1GB --dry-run
    """
    from rdsrepl.postgres import connection
    from rdsrepl.retention.server_state import BackgroundSampler

    if keep_last:
        raise BadValue("--keep-last was renamed to --advance", hint="use --advance")
    if confirm is not None and not every:
        raise BadValue("--confirm requires --all", hint="omit it; --yes confirms without a prompt")
    if not (slot or lost or every or inactive_for is not None or retaining_over is not None):
        raise BadValue(
            "no slots selected",
            hint="give --slot NAME, --inactive-for 7d, --retaining-over 10GB or --lost; preview with --dry-run",
        )
    idle_seconds = observe if inactive_for is None else inactive_for
    criteria = _criteria(slot, idle_seconds, retaining_over, unprotect, lost, include_physical)
    target = database_target(ctx)
    criteria = replace(
        criteria, protected=protected_patterns(target), in_use_elsewhere=_subscribed_slots(ctx, subscriber or ())
    )
    metrics = read_rds_metrics(ctx, target, free_space)
    with ExitStack() as stack:
        conn = stack.enter_context(connection.open(target))
        criteria = _with_server_facts(conn, criteria, with_default_idle=inactive_for is None)
        state, decisions, sampler = _evaluate_slots(ctx, conn, criteria, observe, metrics)
        decisions = tuple(replace(one, recreate=with_selectors(ctx, one.recreate)) for one in decisions)
        decisions = _as_saved(ctx, decisions)
        _require_match(criteria, state)
        if not every:
            _require_not_all(criteria, state)
        plan, acted_on = _plan(ctx, conn, state, decisions, advance=advance, physical=include_physical)
        typed = TypedConfirmation(counted(len(acted_on), "slot"), "--confirm", confirm) if every and plan else None
        background = None
        if sampler is not None and plan and _asks_for_confirmation(ctx, typed):
            background = stack.enter_context(BackgroundSampler(conn, sampler))
        audit = None
        if plan and _applies(ctx):
            check = background.require_untouched if background is not None else lambda _: None
            audit = stack.enter_context(SlotAudit(ctx, conn, "slot prune", acted_on, advances=advance, check=check))
        if background is None:
            conn.close()  # the confirmation can take minutes
        as_document = not _applies(ctx) and not global_options(ctx).output.is_table
        if as_document:
            emit(document(state, decisions, plan), global_options(ctx).output, lambda: "")
        elif _applies(ctx) and global_options(ctx).log_format is LogFormat.json:
            log_event(ctx, plan.title, event="plan", plan=to_json(document(state, decisions, plan)))
        else:
            explain(ctx, state, decisions, advance=advance, to_stdout=not _applies(ctx))
        if (refused := _refusal(criteria, decisions)) is not None:
            raise refused
        confirm_and_apply(ctx, plan, target=target, typed=typed, recorder=audit, is_shown=as_document)


def _as_saved(ctx: typer.Context, decisions: Sequence[PruneDecision]) -> tuple[PruneDecision, ...]:
    """Return the decisions without the candidates that a saved plan does not drop: they became idle later."""
    names = [one.slot.slot_name for one in decisions if one.is_candidate]
    saved = frozenset(json.loads(pinned(ctx, "slots", json.dumps(names))))
    return tuple(one for one in decisions if not one.is_candidate or one.slot.slot_name in saved)


def _criteria(
    patterns: Sequence[str] | None,
    idle_seconds: float | None,
    retaining_over: int | None,
    unprotect: Sequence[str] | None,
    lost: bool,
    include_physical: bool,
) -> Criteria:
    """Return the criteria that the options give.

    Raises:
        BadValue: a value is not valid, or two options exclude each other.
    """
    from rdsrepl.retention import prune_rules

    criteria = prune_rules.Criteria(
        patterns=tuple(patterns or ()),
        idle_seconds=prune_rules.DEFAULT_IDLE_SECONDS if idle_seconds is None else idle_seconds,
        retaining_over_bytes=retaining_over,
        lost=lost,
        include_physical=include_physical,
        unprotected=frozenset(unprotect or ()),
    )
    prune_rules.check(criteria)
    return criteria


def _with_server_facts(conn: Connection, criteria: Criteria, *, with_default_idle: bool) -> Criteria:
    """Return the criteria with the server's own subscriptions and the idle time that its version requires."""
    from rdsrepl.postgres import connection, subscriptions, versions
    from rdsrepl.retention import prune_rules

    own = {
        slot: f"subscription {name} in database {database} of this server"
        for slot, name, database in subscriptions.slots_in_use(conn)
    }
    idle_seconds = criteria.idle_seconds
    if with_default_idle and connection.server_version(conn) >= versions.SLOT_INACTIVITY_SINCE:
        # Samples prove no more than inactive_since there, so --observe does not shorten the required time.
        idle_seconds = max(idle_seconds, prune_rules.DEFAULT_IDLE_SECONDS)
    in_use = {**own, **(criteria.in_use_elsewhere or {})}
    return replace(criteria, idle_seconds=idle_seconds, in_use_elsewhere=in_use)


def _plan(
    ctx: typer.Context,
    conn: Connection,
    state: ServerState,
    decisions: Sequence[PruneDecision],
    *,
    advance: bool,
    physical: bool,
) -> tuple[Plan, dict[str, Slot]]:
    """Return the plan that drops or advances every candidate, and the slots it acts on, by name."""
    from rdsrepl.postgres import slot_plans, slots

    candidates = [one for one in decisions if one.is_candidate]
    position = replace(state.wal, lsn=Lsn.parse(pinned(ctx, "lsn", str(state.wal.lsn)))) if advance else state.wal
    saved = slots.saved_at(conn, [one.slot.slot_name for one in candidates])
    steps: list[Step] = []
    acted_on: dict[str, Slot] = {}
    for one in candidates:
        written = saved.get(one.slot.slot_name)
        if advance:
            plan = _advance(ctx, one, position, written)
        else:
            plan = slot_plans.drop(one.slot, server=state.wal, physical=physical, saved=written)
        steps += plan.steps
        if plan:
            acted_on[one.slot.slot_name] = one.slot
    title = f"{'advance' if advance else 'drop'} {counted(len(steps), 'slot')}" if steps else "prune"
    lost = consequences([one for one in candidates if one.slot.slot_name in acted_on]) if steps else ()
    return Plan(title, tuple(steps), lost, unchanged="nothing to prune", independent=True), acted_on


def _asks_for_confirmation(ctx: typer.Context, typed: TypedConfirmation | None) -> bool:
    """Return whether the command asks for confirmation before it applies the plan."""
    return _applies(ctx) and (not apply_options(ctx).yes if typed is None else typed.given is None)


def _applies(ctx: typer.Context) -> bool:
    return not apply_options(ctx).plans_only


def _evaluate_slots(
    ctx: typer.Context,
    conn: Connection,
    criteria: Criteria,
    observe: float | None,
    metrics: RdsMetrics,
) -> tuple[ServerState, tuple[PruneDecision, ...], SlotSampler | None]:
    """Read the slots and evaluate them; sample them first if only samples can prove that they are idle.

    The sampler is None if no samples were taken.
    """
    from rdsrepl.retention import prune_rules

    state = read_server_state(ctx, conn, metrics)
    decisions = _evaluate(state, criteria)
    if observe is None:
        return state, decisions, None
    missing = prune_rules.missing_sample_seconds(decisions, state.wal.version, criteria.idle_seconds)
    if missing > 0:
        state, sampler = _sample(ctx, conn, min(observe, missing), metrics)
        return state, _evaluate(state, criteria), sampler
    return state, decisions, None


def _sample(
    ctx: typer.Context, conn: Connection, seconds: float, metrics: RdsMetrics
) -> tuple[ServerState, SlotSampler]:
    """Sample the slots for a time; add each sample that differs from the one before to the history."""
    from rdsrepl.postgres import server_identity
    from rdsrepl.retention.server_state import MAX_GAP_SECONDS, SAMPLE_SECONDS, SlotSampler
    from rdsrepl.state import slot_history

    note(ctx, f"sampling the slots for {format_duration(seconds)}")
    progress, sampler, key = Progress(ctx), SlotSampler(), server_identity.history_key(conn)
    started = time.monotonic()
    # An interruption starts the time again; it may at most double, plus ten gaps.
    longest = 2 * seconds + 10 * MAX_GAP_SECONDS
    while sampler.seconds < seconds and (elapsed := time.monotonic() - started) < longest:
        now, rows = sampler.sample(conn)
        if sampler.changed:
            slot_history.record(key, assessment.to_observation(now, rows))
        progress.update("sampling the slots", elapsed)
        time.sleep(min(SAMPLE_SECONDS, max(0.0, seconds - sampler.seconds)))
    progress.clear()
    state = read_server_state(ctx, conn, metrics, sampler=sampler)
    for text in sampler.interruptions:
        warn(ctx, f"sampling was interrupted and started again at {text}")
    return state, sampler


def _evaluate(state: ServerState, criteria: Criteria) -> tuple[PruneDecision, ...]:
    from rdsrepl.retention import prune_rules

    return prune_rules.evaluate(state.assess(), state.slots, state.history, criteria)


def _refusal(criteria: Criteria, decisions: Sequence[PruneDecision]) -> Refused | None:
    """Return the error if a slot that is selected by name may not be dropped; None if each of them may."""
    kept = [
        (one.slot.slot_name, [each.reason for each in one.blockers])
        for one in decisions
        if one.slot.slot_name in criteria.patterns
        and one.blockers
        and not any(each.rule in _SELECTION_RULES for each in one.blockers)
    ]
    if not kept:
        return None
    more = f" (nor {len(kept) - 1} more)" if len(kept) > 1 else ""
    return Refused(
        f"slot {kept[0][0]} cannot be pruned{more}: {'; '.join(kept[0][1])}",
        hint="nothing was changed; resolve the reason, or select the other slots without it",
    )


def _require_match(criteria: Criteria, state: ServerState) -> None:
    from rdsrepl.retention import prune_rules

    for pattern in criteria.patterns:
        if not any(prune_rules.selects(replace(criteria, patterns=(pattern,)), slot) for slot in state.slots):
            raise NotFound(f"no replication slot {pattern} on this server", hint="rdsrepl slot list")
    if not state.slots:
        raise NotFound("no replication slots on this server", hint="rdsrepl slot list")


def _require_not_all(criteria: Criteria, state: ServerState) -> None:
    from rdsrepl.retention import prune_rules

    if prune_rules.matches_all_slots(criteria, state.slots):
        raise BadValue(
            f"--slot {' '.join(criteria.patterns)} selects every logical slot of this server",
            hint="select slots by name, or add --all",
        )


def _subscribed_slots(ctx: typer.Context, subscribers: Sequence[str]) -> dict[str, str]:
    """Return the slots that subscriptions of other servers use, with a description of the subscription.

    Raises:
        Error: one of these servers cannot be read; its slots are then unknown, so nothing is pruned.
    """
    from rdsrepl.postgres import connection, subscriptions

    slots_in_use: dict[str, str] = {}
    for words in subscribers:
        target = other_target(ctx, words, "--subscriber")
        try:
            with connection.open(target) as conn:
                for slot, name, database in subscriptions.slots_in_use(conn):
                    slots_in_use[slot] = f"subscription {name} of {conn.info.host}/{database}"
        except Error as exc:
            raise type(exc)(
                f"--subscriber: {exc.message}", hint=exc.hint, sqlstate=exc.sqlstate, aws_code=exc.aws_code
            ) from exc
    return slots_in_use


def _advance(ctx: typer.Context, one: PruneDecision, server: ServerIdentity, saved: datetime | None) -> Plan:
    """Return the plan that advances a slot; an empty plan if the slot cannot be advanced from this database."""
    from rdsrepl.postgres import slot_plans

    try:
        return slot_plans.advance(one.slot, None, server=server, saved=saved)
    except Error as exc:
        warn(ctx, f"{exc.message}: the slot is not changed" + (f" ({exc.hint})" if exc.hint else ""))
        return Plan(f"advance replication slot {one.slot.slot_name}", ())


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl slot``."""
    app.command("prune", cls=WriteCommand)(prune)
