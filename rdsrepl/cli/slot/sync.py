"""``slot sync``: keep the followers of slot pairs behind their leaders: one pass, or a service."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.confirm import confirm_and_apply
from rdsrepl.cli.console import log_event, note, warn
from rdsrepl.cli.context import apply_options, global_options
from rdsrepl.cli.option_bundles import with_bundles
from rdsrepl.cli.options import duration_option, flag_option
from rdsrepl.cli.slot.drop_audit import SlotAudit, require_unprotected
from rdsrepl.cli.slot.pairs import EXIT_CODES, LISTING, Names, PairFlags, synchronizer, table_of
from rdsrepl.cli.slot.service_options import SERVICE_PANEL, MetricsPort
from rdsrepl.errors import BadValue, Error, ExitCode, Refused
from rdsrepl.failover import slot_pairs
from rdsrepl.failover.slot_pairs import PairReport, PairState, Place, SlotPair
from rdsrepl.plan import Plan, Step
from rdsrepl.render import emit, listing, stacked
from rdsrepl.text.counts import form

if TYPE_CHECKING:
    from rdsrepl.postgres.slots import Slot
    from rdsrepl.slot_sync.passes import PairSynchronizer

_SHORTEST_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 0.2
# After a follower could not be created, the service tries again after this time: an attempt may take the timeout.
_CREATE_AGAIN_SECONDS: Final = 300.0


@with_bundles
def sync(
    ctx: typer.Context,
    names: Names = None,
    *,
    flags: PairFlags,
    all_: Annotated[bool, flag_option("--all", help="Synchronize all logical slots of both servers.")] = False,
    create: Annotated[bool, flag_option("--create", help="Create the followers that are missing.")] = False,
    nudge: Annotated[
        bool,
        flag_option(
            "--nudge", help="Write a small message on the primary, so that a pair of an idle database becomes ready."
        ),
    ] = False,
    retire: Annotated[
        bool, flag_option("--retire", help="Drop the followers instead, before PostgreSQL 17 synchronizes the slots.")
    ] = False,
    every: Annotated[
        float | None,
        duration_option("--every", help="Make a pass this often until SIGTERM or Ctrl-C.", panel=SERVICE_PANEL),
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            "--metrics-host",
            metavar="ADDRESS",
            help="Listen on this address for metrics.",
            rich_help_panel=SERVICE_PANEL,
        ),
    ] = "127.0.0.1",
) -> None:
    """Advance each slot on a standby to the position that its consumer confirmed on the primary.

    After a promotion of the standby, the consumer continues there without a gap. PostgreSQL 16 or later; two servers
    of any kind, except Aurora and Multi-AZ DB clusters. A pass never moves a follower beyond its leader, and asks no
    question. Exit 0: all pairs ready; 8: a pair pending or behind; 9: missing, lost or broken.

    Example: rdsrepl slot sync --all --with orders-replica --create --every 10s
    """
    _require_usable(ctx, names, is_all=all_, retire=retire, create=create, nudge=nudge, every=every, port=metrics_port)
    with synchronizer(ctx, tuple(names or ()), flags) as pairs:
        if retire:
            _retire(ctx, pairs)
            return
        if create:
            _create(ctx, pairs, flags.timeout)
        if apply_options(ctx).plans_only:
            _preview(ctx, pairs, has_plan=create)
            return
        if every is not None:
            _serve(ctx, pairs, flags, every, metrics_port, metrics_host, create=create, nudge=nudge)
            return
        done = pairs.run()
        if nudge:
            done = _nudge(pairs, done, flags.timeout)
    _print(ctx, done)
    raise typer.Exit(EXIT_CODES[slot_pairs.worst(done)])


def _require_usable(
    ctx: typer.Context,
    names: Sequence[str] | None,
    *,
    is_all: bool,
    retire: bool,
    create: bool,
    nudge: bool,
    every: float | None,
    port: int | None,
) -> None:
    """Refuse options that do not fit each other.

    Raises:
        BadValue: they do not.
    """
    if bool(names) == is_all:
        raise BadValue("name the slots, or give --all", hint="rdsrepl slot sync --all --with TARGET")
    if retire and (create or nudge or every is not None):
        raise BadValue("--retire excludes --create, --nudge and --every", hint="give only --retire")
    if port is not None and every is None:
        raise BadValue("--metrics-port requires --every", hint="add --every 10s")
    if every is not None and every < _SHORTEST_SECONDS:
        raise BadValue(f"--every {every:g}s is too short", hint="give at least 100ms")
    if every is not None and not global_options(ctx).output.is_table:
        raise BadValue("--every prints no document", hint="omit -o, and use --log-format json or --metrics-port")


def _print(ctx: typer.Context, pairs: Sequence[SlotPair]) -> None:
    rows = table_of([PairReport.of(pair) for pair in pairs])
    below = rows.below(rows.rows) if rows.below else ()
    emit(
        rows.rows,
        global_options(ctx).output,
        lambda: stacked(listing(rows.rows, LISTING.columns, empty=LISTING.empty), *below),
    )


def _preview(ctx: typer.Context, pairs: PairSynchronizer, *, has_plan: bool) -> None:
    """Show the pairs as they are, and with ``--check`` exit 7 if a pass would advance one."""
    found = pairs.read()
    if not has_plan or global_options(ctx).output.is_table:
        _print(ctx, found)
    for pair in found:
        if pair.target_lsn is not None:
            note(ctx, f"a pass advances {pair.slot_name} to {pair.target_lsn}")
    if apply_options(ctx).check and any(pair.target_lsn is not None for pair in found):
        raise typer.Exit(ExitCode.CHANGES_PENDING)


def _follower_place(pair: SlotPair) -> Place:
    return "there" if pair.leader_at == "here" else "here"


def _create(ctx: typer.Context, pairs: PairSynchronizer, timeout_seconds: float) -> None:
    """Plan, confirm and create the missing followers.

    Raises:
        Error: a follower cannot be created; nothing is left of it.
    """
    missing = [pair for pair in pairs.read() if pair.state is PairState.missing]
    if not missing:
        return
    place = _follower_place(missing[0])
    plan = _creation(pairs, missing, timeout_seconds)
    confirm_and_apply(ctx, plan, target=pairs.target(place, None), reports=False)


def _creation(pairs: PairSynchronizer, missing: Sequence[SlotPair], timeout_seconds: float) -> Plan:
    """Return the plan that creates followers."""
    from rdsrepl.postgres import standbys

    steps: list[Step] = []
    warnings: dict[str, None] = {}
    for pair in missing:
        assert pair.leader is not None
        place, database = _follower_place(pair), pair.leader.database
        on_standby = pairs.server(place).wal.in_recovery
        plan = standbys.create_follower(
            pairs.connection(place, database),
            pair.leader,
            target=pairs.target(place, database),
            primary=pairs.target(pair.leader_at, database) if on_standby else None,
            timeout_seconds=timeout_seconds,
        )
        steps += plan.steps
        warnings |= dict.fromkeys(plan.warnings)
    title = f"create {len(steps)} {form(len(steps), 'follower', 'followers')}"
    return Plan(title, tuple(steps), tuple(warnings))


def _nudge(pairs: PairSynchronizer, done: list[SlotPair], timeout_seconds: float) -> list[SlotPair]:
    """Write a message for each pending pair, and make passes until none is pending, or until the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while pairs.nudge_pending(done):
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_SECONDS)
        done = pairs.run()
    return done


def _retire(ctx: typer.Context, pairs: PairSynchronizer) -> None:
    """Plan, confirm and drop the followers.

    Raises:
        Refused: a pair has no leader, its follower is in use, or the config file protects it.
    """
    from rdsrepl.postgres import slot_plans, slots

    followers: dict[str, Slot] = {}
    steps: list[Step] = []
    warnings: list[str] = []
    places: set[Place] = set()
    for pair in pairs.read():
        if pair.follower is None:
            continue
        if pair.state is PairState.broken or pair.leader is None:
            raise Refused(
                f"pair {pair.slot_name} is broken: {pair.reason}; its follower is not dropped",
                hint="name the other slots, or drop it yourself: rdsrepl slot drop NAME",
            )
        place = _follower_place(pair)
        conn = pairs.connection(place, None)
        require_unprotected(pair.slot_name, pairs.target(place, None), frozenset())
        saved = slots.saved_at(conn, [pair.slot_name]).get(pair.slot_name)
        plan = slot_plans.drop(pair.follower, server=pairs.server(place).wal, saved=saved)
        steps += plan.steps
        warnings.append(f"{pair.slot_name}: from now on a failover to {pairs.server(place).label} loses changes")
        followers[pair.slot_name] = pair.follower
        places.add(place)
    if len(places) > 1:
        raise Refused("the followers are on both servers", hint="name the slots, or give --leader")
    place = places.pop() if places else "there"
    plan = Plan("drop the followers", tuple(steps), tuple(warnings), unchanged="there are no followers")
    audit = SlotAudit(ctx, pairs.connection(place, None), "slot sync", followers)
    with audit:
        confirm_and_apply(ctx, plan, target=pairs.target(place, None), recorder=audit)


class _Observer:
    """Writes what the service reports to stderr."""

    def __init__(self, ctx: typer.Context) -> None:
        self._ctx = ctx

    def note(self, text: str) -> None:
        note(self._ctx, text)

    def warn(self, text: str) -> None:
        warn(self._ctx, text)

    def passed(self, pairs: Sequence[SlotPair]) -> None:
        from rdsrepl.render import document

        log_event(
            self._ctx, slot_pairs.summary(pairs), event="pass", pairs=document([PairReport.of(pair) for pair in pairs])
        )


def _serve(
    ctx: typer.Context,
    pairs: PairSynchronizer,
    flags: PairFlags,
    every: float,
    metrics_port: int | None,
    metrics_host: str,
    *,
    create: bool,
    nudge: bool,
) -> None:
    from rdsrepl.slot_sync import service
    from rdsrepl.tail.metrics import MetricsOptions

    observer = _Observer(ctx)
    next_attempt = 0.0

    def create_missing() -> None:
        nonlocal next_attempt
        if time.monotonic() < next_attempt:
            return
        try:
            _create(ctx, pairs, flags.timeout)
        except Error as exc:
            observer.warn(f"{exc.message}; trying again in {_CREATE_AGAIN_SECONDS / 60:g} minutes")
            next_attempt = time.monotonic() + _CREATE_AGAIN_SECONDS

    def after_pass(done: Sequence[SlotPair]) -> None:
        if nudge:
            pairs.nudge_pending(done)

    last = service.run(
        pairs,
        every,
        observer,
        metrics=None if metrics_port is None else MetricsOptions(metrics_port, metrics_host),
        before_pass=create_missing if create and apply_options(ctx).yes else None,
        after_pass=after_pass,
    )
    raise typer.Exit(EXIT_CODES[slot_pairs.worst(last)])


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl slot``."""
    app.command("sync", cls=WriteCommand)(sync)
