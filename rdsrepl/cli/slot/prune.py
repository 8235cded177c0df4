"""``rdsrepl slot prune``: drop the slots that nobody uses, and no other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl import config
from rdsrepl.cli.completion import complete_slot
from rdsrepl.cli.confirm import TypedConfirmation, confirm_and_apply
from rdsrepl.cli.console import Progress, note, warn
from rdsrepl.cli.context import apply_options, global_options
from rdsrepl.cli.options import WriteCommand, duration_option, size_option
from rdsrepl.cli.slot.drop_audit import SlotAudit, protected_patterns
from rdsrepl.cli.slot.prune_report import count, document, explain
from rdsrepl.cli.slot.server_state import read_rds_metrics, read_server_state
from rdsrepl.cli.targets import database_target
from rdsrepl.errors import BadValue, Error, ExitCode, NotFound, Refused
from rdsrepl.plan import Plan
from rdsrepl.render import Format, emit
from rdsrepl.retention import assessment
from rdsrepl.text.masking import mask
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from datetime import datetime

    from rdsrepl.config import Target
    from rdsrepl.plan import Step
    from rdsrepl.postgres.connection import Connection
    from rdsrepl.postgres.server_identity import ServerIdentity
    from rdsrepl.postgres.slots import Slot
    from rdsrepl.retention.prune_rules import Criteria, PruneDecision
    from rdsrepl.retention.rds_metrics import RdsMetrics
    from rdsrepl.retention.server_state import ServerState, SlotSampler

_WHICH: Final = "Which slots"
_PROOF: Final = "What counts as idle"
# What the options themselves ask for: a slot that does not meet it is none that is meant.
_CONDITIONS: Final = frozenset({"not_selected", "too_small", "not_lost"})


def prune(
    ctx: typer.Context,
    slot: Annotated[
        list[str] | None,
        typer.Option(
            "--slot",
            metavar="NAME",
            help="A slot, or a pattern such as 'old_*'; may be repeated. Default: every logical slot.",
            autocompletion=complete_slot,
            rich_help_panel=_WHICH,
        ),
    ] = None,
    inactive_for: Annotated[
        float | None,
        duration_option(
            "--inactive-for", help="Proven to be idle for at least this long; by default 1h.", panel=_PROOF
        ),
    ] = None,
    retaining_over: Annotated[
        int | None, size_option("--retaining-over", help="Only slots that hold more WAL than this.", panel=_WHICH)
    ] = None,
    lost: Annotated[
        bool,
        typer.Option("--lost", help="Only slots the server has given up.", rich_help_panel=_WHICH, show_default=False),
    ] = False,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="A pattern may mean every logical slot there is.",
            rich_help_panel=_WHICH,
            show_default=False,
        ),
    ] = False,
    include_physical: Annotated[
        bool,
        typer.Option(
            "--include-physical",
            help="Physical slots, too; RDS's own never.",
            rich_help_panel=_WHICH,
            show_default=False,
        ),
    ] = False,
    unprotect: Annotated[
        list[str] | None,
        typer.Option(
            "--unprotect", metavar="NAME", help="A slot that the config file protects.", rich_help_panel=_WHICH
        ),
    ] = None,
    subscriber: Annotated[
        list[str] | None,
        typer.Option(
            "--subscriber",
            metavar="TARGET",
            help="A server whose subscriptions use slots here: a target, or a connection string; may be repeated.",
            rich_help_panel=_PROOF,
        ),
    ] = None,
    observe: Annotated[
        float | None,
        duration_option(
            "--observe",
            help="Before PostgreSQL 17: sample the slots for this long without a break; what stands still is idle.",
            panel=_PROOF,
        ),
    ] = None,
    free_space: Annotated[
        int | None, size_option("--free-space", help="Free storage, for the forecast.", panel=_PROOF)
    ] = None,
    advance: Annotated[
        bool,
        typer.Option(
            "--advance",
            help="Keep the slots and give up their backlog: advance each to the current position.",
            rich_help_panel=_WHICH,
            show_default=False,
        ),
    ] = False,
    keep_last: Annotated[bool, typer.Option("--keep-last", hidden=True, help="Now --advance.")] = False,
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", metavar="WORDS", help="With --all, in place of typing it: 'N slots'."),
    ] = None,
) -> None:
    """Drop logical slots that are proven to be idle, after showing what each holds and what is lost with it.

    Never dropped: a slot in use, RDS's own, a standby's synchronised copy, one the config file protects. Failover slots
    and those of known consumers (DMS, pglogical, Debezium, subscriptions) must be named one by one. Each statement
    checks once more that the slot is untouched; each drop, and each advance, is written to the audit file.

    Example: rdsrepl slot prune --inactive-for 7d --retaining-over 1GB --dry-run
    """
    from rdsrepl.postgres import connection
    from rdsrepl.retention.server_state import BackgroundSampler

    if keep_last:
        raise BadValue("--keep-last is called --advance", hint="rdsrepl slot prune … --advance")
    if confirm is not None and not every:
        raise BadValue("--confirm goes with --all", hint="leave it out; --yes does not ask")
    if not (slot or lost or every or inactive_for is not None or retaining_over is not None):
        raise BadValue(
            "which slots? Nothing says so",
            hint="--slot NAME, --inactive-for 7d, --retaining-over 10GB or --lost; see with --dry-run",
        )
    idle_seconds = observe if inactive_for is None else inactive_for
    criteria = _criteria(slot, idle_seconds, retaining_over, unprotect, lost, include_physical)
    target = database_target(ctx)
    criteria = replace(
        criteria, protected=protected_patterns(target), in_use_elsewhere=_subscribed_slots(subscriber or ())
    )
    metrics = read_rds_metrics(ctx, target, free_space)
    with ExitStack() as stack:
        conn = stack.enter_context(connection.open(target))
        criteria = _with_server_facts(conn, criteria, with_default_idle=inactive_for is None)
        state, decisions, sampler = _evaluate_slots(ctx, conn, criteria, observe, metrics)
        _require_match(criteria, state)
        if not every:
            _require_not_all(criteria, state)
        plan, acted_on = _plan(ctx, conn, state, decisions, advance=advance, physical=include_physical)
        typed = TypedConfirmation(count(len(acted_on)), "--confirm", confirm) if every and plan else None
        background = None
        if sampler is not None and plan and _asks_for_confirmation(ctx, typed):
            background = stack.enter_context(BackgroundSampler(conn, sampler))
        audit = None
        if plan and _applies(ctx):
            check = background.require_untouched if background is not None else lambda _: None
            audit = SlotAudit(conn, "slot prune", acted_on, advances=advance, check=check)
        if background is None:
            conn.close()  # a person may think for long
        as_document = not _applies(ctx) and global_options(ctx).output is not Format.table
        if as_document:
            emit(document(state, decisions, plan), global_options(ctx).output, lambda: "")
        else:
            explain(ctx, state, decisions, advance=advance, to_stdout=not _applies(ctx))
        if (refused := _refusal(criteria, decisions)) is not None:
            raise refused
        if not as_document:
            confirm_and_apply(ctx, plan, target=target, typed=typed, recorder=audit)
        elif apply_options(ctx).check and plan:
            raise typer.Exit(ExitCode.CHANGES_PENDING)


def _criteria(
    patterns: Sequence[str] | None,
    idle_seconds: float | None,
    retaining_over: int | None,
    unprotect: Sequence[str] | None,
    lost: bool,
    include_physical: bool,
) -> Criteria:
    """Return what the options ask for.

    Raises:
        BadValue: they make no sense.
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
    """Return the criteria with what the server's version and its own subscriptions add."""
    from rdsrepl.postgres import connection, subscriptions, versions
    from rdsrepl.retention import prune_rules

    own = {
        slot: f"subscription {name} of this server's database {database}"
        for slot, name, database in subscriptions.slots_in_use(conn)
    }
    idle_seconds = criteria.idle_seconds
    if with_default_idle and connection.server_version(conn) >= versions.SLOT_INACTIVITY_SINCE:
        # Watching proves nothing there that the server does not say, so it asks for nothing less, either.
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
    saved = slots.saved_at(conn, [one.slot.slot_name for one in candidates])
    steps: list[Step] = []
    acted_on: dict[str, Slot] = {}
    for one in candidates:
        written = saved.get(one.slot.slot_name)
        if advance:
            plan = _advance(ctx, one, state.wal, written)
        else:
            plan = slot_plans.drop(one.slot, server=state.wal, physical=physical, saved=written)
        steps += plan.steps
        if plan:
            acted_on[one.slot.slot_name] = one.slot
    title = f"{'advance' if advance else 'drop'} {count(len(steps))}" if steps else "prune"
    return Plan(title, tuple(steps), (), unchanged="nothing to prune", independent=True), acted_on


def _asks_for_confirmation(ctx: typer.Context, typed: TypedConfirmation | None) -> bool:
    """Say whether somebody will be asked before anything is done."""
    return _applies(ctx) and (not apply_options(ctx).yes if typed is None else typed.given is None)


def _applies(ctx: typer.Context) -> bool:
    return not (apply_options(ctx).dry_run or apply_options(ctx).check)


def _evaluate_slots(
    ctx: typer.Context,
    conn: Connection,
    criteria: Criteria,
    observe: float | None,
    metrics: RdsMetrics,
) -> tuple[ServerState, tuple[PruneDecision, ...], SlotSampler | None]:
    """Look at the slots, and where only samples can prove that they are idle, take them; return those, too."""
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
    """Sample the slots for so long without a break; each sample at which something has changed is remembered."""
    from rdsrepl.postgres import server_identity
    from rdsrepl.retention.server_state import MAX_GAP_SECONDS, SAMPLE_SECONDS, SlotSampler
    from rdsrepl.state import slot_history

    note(ctx, f"watching the slots for {format_duration(seconds)}")
    progress, sampler, key = Progress(ctx), SlotSampler(), server_identity.history_key(conn)
    started = time.monotonic()
    # A server that did not answer for a moment makes it longer: twice as long and ten seconds at most.
    longest = 2 * seconds + 10 * MAX_GAP_SECONDS
    while sampler.seconds < seconds and (elapsed := time.monotonic() - started) < longest:
        now, rows = sampler.sample(conn)
        if sampler.changed:
            slot_history.record(key, assessment.to_observation(now, rows))
        progress.update("watching the slots", elapsed)
        time.sleep(min(SAMPLE_SECONDS, max(0.0, seconds - sampler.seconds)))
    progress.clear()
    state = read_server_state(ctx, conn, metrics, sampler=sampler)
    for text in sampler.interruptions:
        warn(ctx, f"the row of samples began anew at {text}")
    return state, sampler


def _evaluate(state: ServerState, criteria: Criteria) -> tuple[PruneDecision, ...]:
    from rdsrepl.retention import prune_rules

    return prune_rules.evaluate(state.assess(), state.slots, state.history, criteria)


def _refusal(criteria: Criteria, decisions: Sequence[PruneDecision]) -> Refused | None:
    """Return why nothing is done: a slot that is named itself may not be dropped; None where each of them may."""
    kept = [
        (one.slot.slot_name, [each.reason for each in one.blockers])
        for one in decisions
        if one.slot.slot_name in criteria.patterns
        and one.blockers
        and not any(each.rule in _CONDITIONS for each in one.blockers)
    ]
    if not kept:
        return None
    more = f" (and {len(kept) - 1} more of those named)" if len(kept) > 1 else ""
    return Refused(
        f"slot {kept[0][0]} may not be pruned{more}: {'; '.join(kept[0][1])}",
        hint="nothing was changed; see to the reason, or name the other slots without it",
    )


def _require_match(criteria: Criteria, state: ServerState) -> None:
    from rdsrepl.retention import prune_rules

    for pattern in criteria.patterns:
        if not any(prune_rules.selects(replace(criteria, patterns=(pattern,)), slot) for slot in state.slots):
            raise NotFound(f"no replication slot {pattern} on this server", hint="rdsrepl slot list shows them")
    if not state.slots:
        raise NotFound("no replication slots on this server", hint="rdsrepl slot list shows them, where there are some")


def _require_not_all(criteria: Criteria, state: ServerState) -> None:
    from rdsrepl.retention import prune_rules

    if prune_rules.matches_all_slots(criteria, state.slots):
        raise BadValue(
            f"--slot {' '.join(criteria.patterns)} means every logical slot there is",
            hint="name those that are to go, or add --all",
        )


def _subscribed_slots(subscribers: Sequence[str]) -> dict[str, str]:
    """Return the slots that subscriptions of other servers name.

    Raises:
        Error: one of these servers cannot be asked; what it uses is not known then, so nothing is pruned.
    """
    from rdsrepl.postgres import connection, subscriptions

    slots_in_use: dict[str, str] = {}
    for words in subscribers:
        if not words:
            raise BadValue("--subscriber is empty", hint="name a target or a connection string")
        target = _subscriber_target(words)
        try:
            with connection.open(target) as conn:
                for slot, name, database in subscriptions.slots_in_use(conn):
                    slots_in_use[slot] = f"subscription {name} of {conn.info.host}/{database}"
        except Error as exc:
            raise type(exc)(
                f"--subscriber: {exc.message}", hint=exc.hint, sqlstate=exc.sqlstate, aws_code=exc.aws_code
            ) from exc
    return slots_in_use


def _subscriber_target(words: str) -> Target:
    from rdsrepl.aws import locations

    is_dsn = "=" in words or "://" in words
    if is_dsn and mask(words) != words:
        raise BadValue(
            "--subscriber: a password on the command line is there for everybody to see",
            hint="leave it to ~/.pgpass or PGPASSFILE, or name a target of the config file",
        )
    return locations.with_rds_lookup(config.resolve(dsn=words if is_dsn else None, target=None if is_dsn else words))


def _advance(ctx: typer.Context, one: PruneDecision, server: ServerIdentity, saved: datetime | None) -> Plan:
    """Return the plan that gives up a slot's backlog; an empty one where that cannot be done from here."""
    from rdsrepl.postgres import slot_plans

    try:
        return slot_plans.advance(one.slot, None, server=server, saved=saved)
    except Error as exc:
        warn(ctx, f"{exc.message}: it is left as it is" + (f" ({exc.hint})" if exc.hint else ""))
        return Plan(f"advance replication slot {one.slot.slot_name}", ())


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl slot``."""
    app.command("prune", cls=WriteCommand)(prune)
