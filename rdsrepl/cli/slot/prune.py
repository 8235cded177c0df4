"""``rdsrepl slot prune``: drop the slots that nobody uses, and no other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rdsrepl import config
from rdsrepl.cli.completion import complete_slot
from rdsrepl.cli.confirm import Typed, settle
from rdsrepl.cli.console import Progress, note, warn
from rdsrepl.cli.options import Writer, consent, duration_option, shared, size_option, where
from rdsrepl.cli.slot.drop_audit import SlotTrail, protected
from rdsrepl.cli.slot.server_state import around, look
from rdsrepl.errors import BadValue, Error, ExitCode, NotFound, Refused
from rdsrepl.plan import Plan, Statement
from rdsrepl.render import Format, emit, facts, stacked
from rdsrepl.retention import assessment
from rdsrepl.text.commands import command
from rdsrepl.text.masking import mask
from rdsrepl.units import format_duration, format_size

if TYPE_CHECKING:
    from datetime import datetime

    from rdsrepl.config import Target
    from rdsrepl.postgres.connection import Connection, Here
    from rdsrepl.retention.prune_rules import Criteria, Verdict
    from rdsrepl.retention.rds_metrics import Surroundings
    from rdsrepl.retention.server_state import Standing, Watch

_WHICH: Final = "Which slots"
_PROOF: Final = "What counts as idle"
_SHOWN_KEPT: Final = 20
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
    from rdsrepl.postgres import connection, slots, subscriptions
    from rdsrepl.retention import prune_rules
    from rdsrepl.retention.server_state import Vigil

    if keep_last:
        raise BadValue("--keep-last is called --advance", hint="rdsrepl slot prune … --advance")
    patterns = tuple(slot or ())
    if not (patterns or lost or every or inactive_for is not None or retaining_over is not None):
        raise BadValue(
            "which slots? Nothing says so",
            hint="--slot NAME, --inactive-for 7d, --retaining-over 10GB or --lost; see with --dry-run",
        )
    if confirm is not None and not every:
        raise BadValue("--confirm goes with --all", hint="leave it out; --yes does not ask")
    criteria = prune_rules.Criteria(
        patterns=patterns,
        idle_seconds=next(
            given for given in (inactive_for, observe, prune_rules.DEFAULT_IDLE_SECONDS) if given is not None
        ),
        retaining_over_bytes=retaining_over,
        lost=lost,
        include_physical=include_physical,
        unprotected=frozenset(unprotect or ()),
    )
    prune_rules.check(criteria)
    target = where(ctx)
    criteria = replace(
        criteria,
        protected=protected(target),
        in_use_elsewhere=_subscriptions(subscriber or ()),
    )
    surroundings = around(ctx, target, free_space)
    with ExitStack() as stack:
        conn = stack.enter_context(connection.open(target))
        own = {
            slot: f"subscription {name} of this server's database {database}"
            for slot, name, database in subscriptions.slots_in_use(conn)
        }
        criteria = replace(criteria, in_use_elsewhere={**own, **(criteria.in_use_elsewhere or {})})
        if inactive_for is None and connection.server_version(conn) >= prune_rules.SAYS_SINCE_WHEN:
            # Watching proves nothing there that the server does not say, so it asks for nothing less, either.
            criteria = replace(criteria, idle_seconds=max(criteria.idle_seconds, prune_rules.DEFAULT_IDLE_SECONDS))
        standing, verdicts, watch = _look(ctx, conn, criteria, observe, surroundings)
        _require_match(criteria, standing)
        sweeping = prune_rules.is_sweeping(criteria, standing.slots)
        if sweeping and not every:
            raise BadValue(
                f"--slot {' '.join(patterns)} means every logical slot there is",
                hint="name those that are to go, or add --all",
            )
        candidates = [one for one in verdicts if one.is_candidate]
        here = connection.Here(
            conn.info.dbname,
            standing.wal.started_at,
            standing.wal.in_recovery,
            standing.wal.lsn,
            standing.wal.timeline,
            standing.server if standing.server.isdigit() else None,
        )
        steps: dict[int, slots.Slot] = {}
        plans = []
        saved = slots.saved_at(conn, [one.slot.slot_name for one in candidates])
        for one in candidates:
            written = saved.get(one.slot.slot_name)
            plan = (
                _advance(ctx, one, here, written)
                if advance
                else slots.drop(one.slot, here=here, physical=include_physical, saved=written)
            )
            plans.append(plan)
            steps |= {id(step): one.slot for step in plan.steps}
        title = f"{'advance' if advance else 'drop'} {_count(len(steps))}" if steps else "prune"
        plan = Plan(
            title,
            tuple(step for one in plans for step in one.steps),
            (),
            unchanged="nothing to prune",
            independent=True,
        )
        typed = Typed(_count(len(steps)), "--confirm", confirm) if every and steps else None
        vigil = None
        if watch is not None and steps and _asks(ctx, typed):
            vigil = stack.enter_context(Vigil(conn, watch))
        trail = (
            SlotTrail(
                conn,
                "slot prune",
                steps,
                advances=advance,
                check=vigil.require_untouched if vigil is not None else lambda _: None,
            )
            if steps and _changes(ctx)
            else None
        )
        if vigil is None:
            conn.close()  # a person may think for long
        refused = _refusal(criteria, verdicts)
        if not _changes(ctx) and shared(ctx).output is not Format.table:
            emit(_document(standing, verdicts, plan), shared(ctx).output, lambda: "")
            if refused is not None:
                raise refused
            if consent(ctx).check and plan:
                raise typer.Exit(ExitCode.CHANGES_PENDING)
            return
        _explain(ctx, standing, verdicts, advance=advance)
        if refused is not None:
            raise refused
        settle(ctx, plan, target=target, typed=typed, witness=trail)


def _asks(ctx: typer.Context, typed: Typed | None) -> bool:
    """Say whether somebody will be asked before anything is done."""
    return _changes(ctx) and (not consent(ctx).yes if typed is None else typed.given is None)


def _changes(ctx: typer.Context) -> bool:
    return not (consent(ctx).dry_run or consent(ctx).check)


def _look(
    ctx: typer.Context,
    conn: Connection,
    criteria: Criteria,
    observe: float | None,
    surroundings: Surroundings,
) -> tuple[Standing, tuple[Verdict, ...], Watch | None]:
    """Look at the slots, and where only samples can prove that they are idle, take them; return those, too."""
    from rdsrepl.retention import prune_rules

    found = look(ctx, conn, surroundings)
    verdicts = _judge(found, criteria)
    if observe is None:
        return found, verdicts, None
    missing = prune_rules.needs_a_look(verdicts, found.wal.version, criteria.idle_seconds)
    if missing > 0:
        found, watch = _observe(ctx, conn, min(observe, missing), surroundings)
        return found, _judge(found, criteria), watch
    return found, verdicts, None


def _observe(
    ctx: typer.Context, conn: Connection, seconds: float, surroundings: Surroundings
) -> tuple[Standing, Watch]:
    """Sample the slots for so long without a break; each sample at which something has changed is remembered."""
    from rdsrepl.postgres import wal
    from rdsrepl.retention.server_state import LONGEST_GAP_SECONDS, SAMPLE_SECONDS, Watch
    from rdsrepl.state import slot_history

    note(ctx, f"watching the slots for {format_duration(seconds)}")
    progress, watch, key = Progress(ctx), Watch(), wal.history_key(conn)
    started = time.monotonic()
    # A server that did not answer for a moment makes it longer: twice as long and ten seconds at most.
    longest = 2 * seconds + 10 * LONGEST_GAP_SECONDS
    while watch.seconds < seconds and (elapsed := time.monotonic() - started) < longest:
        now, rows = watch.sample(conn)
        if watch.changed:
            slot_history.record(key, assessment.observe(now, rows))
        progress.say("watching the slots", elapsed)
        time.sleep(min(SAMPLE_SECONDS, max(0.0, seconds - watch.seconds)))
    progress.clear()
    found = look(ctx, conn, surroundings, watch=watch)
    for text in watch.breaks:
        warn(ctx, f"the row of samples began anew at {text}")
    return found, watch


def _judge(found: Standing, criteria: Criteria) -> tuple[Verdict, ...]:
    from rdsrepl.retention import prune_rules

    return prune_rules.judge(found.assessed(), found.slots, found.history, criteria)


def _refusal(criteria: Criteria, verdicts: Sequence[Verdict]) -> Refused | None:
    """Return why nothing is done: a slot that is named itself may not be dropped; None where each of them may."""
    kept = [
        (one.slot.slot_name, [each.reason for each in one.obstacles])
        for one in verdicts
        if one.slot.slot_name in criteria.patterns
        and one.obstacles
        and not any(each.rule in _CONDITIONS for each in one.obstacles)
    ]
    if not kept:
        return None
    more = f" (and {len(kept) - 1} more of those named)" if len(kept) > 1 else ""
    return Refused(
        f"slot {kept[0][0]} may not be pruned{more}: {'; '.join(kept[0][1])}",
        hint="nothing was changed; see to the reason, or name the other slots without it",
    )


def _require_match(criteria: Criteria, standing: Standing) -> None:
    from rdsrepl.retention import prune_rules

    for pattern in criteria.patterns:
        if not any(prune_rules.selects(replace(criteria, patterns=(pattern,)), slot) for slot in standing.slots):
            raise NotFound(f"no replication slot {pattern} on this server", hint="rdsrepl slot list shows them")
    if not standing.slots:
        raise NotFound("no replication slots on this server", hint="rdsrepl slot list shows them, where there are some")


def _subscriptions(subscribers: Sequence[str]) -> dict[str, str]:
    """Return the slots that subscriptions of other servers name.

    Raises:
        Error: one of these servers cannot be asked; what it uses is not known then, so nothing is pruned.
    """
    from rdsrepl.postgres import connection, subscriptions

    found: dict[str, str] = {}
    for words in subscribers:
        if not words:
            raise BadValue("--subscriber is empty", hint="name a target or a connection string")
        target = _elsewhere(words)
        try:
            with connection.open(target) as conn:
                for slot, name, database in subscriptions.slots_in_use(conn):
                    found[slot] = f"subscription {name} of {conn.info.host}/{database}"
        except Error as exc:
            raise type(exc)(
                f"--subscriber: {exc.message}", hint=exc.hint, sqlstate=exc.sqlstate, aws_code=exc.aws_code
            ) from exc
    return found


def _elsewhere(words: str) -> Target:
    from rdsrepl.aws import locations

    is_dsn = "=" in words or "://" in words
    if is_dsn and mask(words) != words:
        raise BadValue(
            "--subscriber: a password on the command line is there for everybody to see",
            hint="leave it to ~/.pgpass or PGPASSFILE, or name a target of the config file",
        )
    target = config.resolve(dsn=words if is_dsn else None, target=None if is_dsn else words)
    if (target.aws.identifier and not target.located) or target.aws.secret or target.aws.auth == "iam":
        return locations.connected(target)
    return target


def _advance(ctx: typer.Context, one: Verdict, here: Here, saved: datetime | None) -> Plan:
    """Return the plan that gives up a slot's backlog; an empty one where that cannot be done from here."""
    from rdsrepl.postgres import slots

    try:
        return slots.advance(one.slot, None, here=here, saved=saved)
    except Error as exc:
        warn(ctx, f"{exc.message}: it is left as it is" + (f" ({exc.hint})" if exc.hint else ""))
        return Plan(f"advance replication slot {one.slot.slot_name}", ())


def _count(number: int) -> str:
    return f"{number} slot{'' if number == 1 else 's'}"


def _explain(ctx: typer.Context, standing: Standing, verdicts: Sequence[Verdict], *, advance: bool) -> None:
    """Say what is to go, what is lost with it, and why the others stay: on stderr, or stdout where that is all."""
    from rdsrepl.render import say, styled

    candidates = [one for one in verdicts if one.is_candidate]
    parts: list[object] = []
    for one in candidates:
        parts += [styled(one.slot.slot_name, "bold"), facts(_facts(one, advance=advance)), ""]
    if candidates and not advance:
        freed, keeper = assessment.freed_by_dropping(
            [one.slot.slot_name for one in candidates], standing.slots, standing.wal
        )
        held = max((one.slot.retained_bytes or 0 for one in candidates), default=0)
        kept = f"; slot {keeper} keeps the rest" if keeper is not None else ""
        if keeper is None and freed < held:
            kept = f"; wal_keep_size ({format_size(standing.wal.keep_bytes)}) keeps the rest"
        parts.append(f"Freed altogether: about {format_size(freed)} of WAL, at the next checkpoint{kept}")
    kept_slots = [one for one in verdicts if one.obstacles and one.obstacles[0].rule != "not_selected"]
    if kept_slots:
        parts.append("Kept:" if candidates else "Nothing to prune. Kept:")
        lines = [
            (f"  {one.slot.slot_name}", "; ".join(obstacle.reason for obstacle in one.obstacles))
            for one in kept_slots[:_SHOWN_KEPT]
        ]
        if len(kept_slots) > _SHOWN_KEPT:
            lines.append(("  …", f"and {len(kept_slots) - _SHOWN_KEPT} more: --dry-run -o json has all"))
        parts.append(facts(lines))
    if parts and not shared(ctx).quiet:
        say(stacked(*parts), to_stdout=not _changes(ctx), plain=shared(ctx).no_color)


def _facts(one: Verdict, *, advance: bool) -> list[tuple[str, object]]:
    """Return what a person must know before a slot goes."""
    slot, holding = one.slot, one.holding
    rows: list[tuple[str, object]] = [
        ("  what", f"{slot.plugin or 'physical'}, database {slot.database}, {slot.wal_status or 'no WAL'}"),
        ("  idle", one.idleness.text),
        ("  last consumer", one.last_consumer or one.owner or "none was seen by earlier runs"),
    ]
    if one.owner is not None:
        rows.append(("  belongs to", f"{one.owner}: be sure that it is gone"))
    held = "no WAL any more" if slot.retained_bytes is None else f"{format_size(slot.retained_bytes)} of WAL"
    alone = "" if holding.shared_with is None else f" (alone it frees {format_size(holding.freed_bytes)}: "
    alone += "" if holding.shared_with is None else f"{holding.shared_with} holds the rest as well)"
    rows.append(("  holds", held + alone))
    if holding.xid_age:
        rows.append(("  keeps from VACUUM", f"{holding.xid_age:,} transactions"))
    rows += [("  if it stays", f"{breakage.reason}; {_when(breakage.seconds)}") for breakage in holding.breaks[:1]]
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


def _lost(one: Verdict) -> str:
    slot = one.slot
    if slot.is_lost:
        return "nothing more: its changes are gone already"
    if slot.slot_type != "logical":
        return "its standby must be built anew, unless it has all it needs elsewhere"
    if slot.lag_bytes == 0:
        return "nothing: everything was consumed"
    size = "an unknown amount" if slot.lag_bytes is None else format_size(slot.lag_bytes)
    seconds = one.holding.lag_seconds
    oldest = "" if seconds is None else f", the oldest about {format_duration(seconds)} old"
    return f"the changes in {size} of WAL after {slot.confirmed_flush_lsn}{oldest}"


def _document(standing: Standing, verdicts: Sequence[Verdict], plan: Plan) -> dict[str, Any]:
    """Return everything for a review: the keys are a contract (docs/prune.md)."""
    candidates = [one for one in verdicts if one.is_candidate]
    freed, keeper = assessment.freed_by_dropping(
        [one.slot.slot_name for one in candidates], standing.slots, standing.wal
    )
    return {
        "at": standing.wal.at,
        "server": standing.server,
        "title": plan.title,
        "status": "planned" if plan else "unchanged",
        "freed_bytes": freed,
        "freed_limited_by": keeper,
        "statements": [step.text for step in plan.steps if isinstance(step, Statement)],
        "candidates": [_row(one) for one in candidates],
        "kept": [_row(one) for one in verdicts if not one.is_candidate],
    }


def _row(one: Verdict) -> dict[str, Any]:
    holding = one.holding
    return {
        "slot_name": one.slot.slot_name,
        "owner": one.owner,
        "last_consumer": one.last_consumer,
        "idle_seconds": one.idleness.seconds,
        "idle_proof": one.idleness.proof,
        "retained_bytes": holding.retained_bytes,
        "undelivered_bytes": holding.undelivered_bytes,
        "undelivered_seconds": holding.lag_seconds,
        "xid_age": holding.xid_age,
        "freed_bytes": holding.freed_bytes,
        "shared_with": holding.shared_with,
        "breaks": holding.breaks,
        "recreate": one.recreate,
        "obstacles": one.obstacles,
        "slot": one.slot,
    }


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl slot``."""
    app.command("prune", cls=Writer)(prune)
