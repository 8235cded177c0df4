"""``slot pairs``: show slot pairs, and whether a failover is safe now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli.command_classes import ListCommand
from rdsrepl.cli.completion import complete_slot, complete_target
from rdsrepl.cli.lists import Rows, print_list
from rdsrepl.cli.option_bundles import with_bundles
from rdsrepl.cli.options import duration_option, size_option
from rdsrepl.cli.targets import database_target, other_target
from rdsrepl.dashboard.slot_table import SEVERITY_STYLES
from rdsrepl.errors import AlreadyExists, ExitCode, Refused
from rdsrepl.failover import slot_pairs
from rdsrepl.failover.slot_pairs import PairReport, PairState
from rdsrepl.plan import Plan, Statement
from rdsrepl.render import Column, Listing, size, styled
from rdsrepl.retention.thresholds import Severity
from rdsrepl.text.commands import command
from rdsrepl.text.escapes import shown

if TYPE_CHECKING:
    from rdsrepl.postgres.slots import Slot
    from rdsrepl.slot_sync.passes import PairSynchronizer

_SEVERITIES: Final = (Severity.OK, Severity.WARNING, Severity.CRITICAL)
EXIT_CODES: Final = (ExitCode.DONE, ExitCode.WARNING, ExitCode.CRITICAL)


class LeaderPlace(StrEnum):
    """What ``--leader`` takes."""

    here = "here"
    there = "there"


@dataclass(frozen=True, slots=True)
class PairFlags:
    """Which other server, and how pairs are judged."""

    with_: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="TARGET",
            help="Name the other server: a target, a DB instance of the same account, or a connection string.",
            autocompletion=complete_target,
            show_default=False,
        ),
    ]
    leader: Annotated[
        LeaderPlace | None,
        typer.Option(
            "--leader",
            help="Name the server whose slots the consumers read: here, or there (--with); default: the primary.",
            show_default=False,
        ),
    ] = None
    max_repeat: Annotated[
        int | None,
        size_option("--max-repeat", help="Call a pair behind if a failover repeats more WAL than this; default: 64MB."),
    ] = None
    timeout: Annotated[
        float,
        duration_option("--timeout", help="Wait at most this long for a server's answer, and for a new slot."),
    ] = 60.0


Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="SLOT", help="The slots.", autocompletion=complete_slot, show_default=False),
]


@with_bundles
def pairs(
    ctx: typer.Context,
    names: Names = None,
    *,
    flags: PairFlags,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 8 or 9 if a pair is not ready.", show_default=False)
    ] = False,
    nagios: Annotated[
        bool, typer.Option("--nagios", help="Print one line and exit as a Nagios plugin does.", show_default=False)
    ] = False,
) -> None:
    """Show the slot pairs of a primary and a standby, and what a failover would lose or repeat now; change nothing.

    A pair is two slots of the same name. The consumer reads the leader; slot sync keeps the follower behind it. Without
    SLOT, all logical slots of both servers are shown.

    Example: rdsrepl slot pairs --with orders-replica
    """
    with synchronizer(ctx, tuple(names or ()), flags) as reader:
        if nagios:
            _nagios(reader)
        found = print_list(ctx, LISTING, lambda: table_of([PairReport.of(pair) for pair in reader.read()]))
    if check:
        raise typer.Exit(EXIT_CODES[max((slot_pairs.RANKS[row.state] for row in found.rows), default=0)])


def synchronizer(
    ctx: typer.Context, names: tuple[str, ...], flags: PairFlags, *, option: str = "--with"
) -> PairSynchronizer:
    """Return what reads both servers.

    Raises:
        Refused: a server is an Aurora cluster, a Multi-AZ DB cluster, or a member of one.
    """
    from rdsrepl.slot_sync.passes import PairOptions, PairSynchronizer, require_no_cluster

    here, there = database_target(ctx), other_target(ctx, flags.with_, option)
    for target in (here, there):
        require_no_cluster(target)
    options = PairOptions(
        names,
        None if flags.leader is None else flags.leader.value,
        slot_pairs.MAX_REPEAT_BYTES if flags.max_repeat is None else flags.max_repeat,
        flags.timeout,
    )
    return PairSynchronizer(here, there, options)


def creation_of_pair(ctx: typer.Context, leader: Plan, slot: Slot, words: str, timeout_seconds: float) -> Plan:
    """Return the plan that creates a pair: the follower first, so that it does not start after its leader.

    Args:
        ctx: the command's context.
        leader: the plan that creates the leader.
        slot: the leader.
        words: the option that names the follower's server.
        timeout_seconds: the timeout of each step.

    Raises:
        Refused: the two servers can have no pair; or the leader exists, and the follower does not.
    """
    from rdsrepl.postgres import standbys

    flags = PairFlags(with_=words, timeout=timeout_seconds)
    with synchronizer(ctx, (), flags, option="--pair") as reader:
        reader.read()
        on_standby, label = reader.is_primary_here, reader.server("there").label
        present = reader.server("there").slot(slot.slot_name)
        if present is not None and present.total_bytes:  # an advance is not counted
            raise AlreadyExists(
                f"slot {slot.slot_name} exists on {label}, and was read there: it may belong to another consumer",
                hint="choose another name, or drop it there first",
            )
        here, there = reader.target("here", slot.database), reader.target("there", slot.database)
        follower = standbys.create_follower(
            reader.connection("there", slot.database),
            slot,
            target=there,
            primary=here if on_standby else None,
            timeout_seconds=timeout_seconds,
        )
    title = f"create slot pair {slot.slot_name}"
    if not follower and not leader:
        return Plan(title, (), unchanged="both slots already exist")
    if not leader:
        raise Refused(
            f"slot {slot.slot_name} already exists, and {label} has none: a follower made now begins after it",
            hint=f"{command('slot sync {} --create --with {}', slot.slot_name, words)}; the pair is then ready when "
            "the consumer has passed the follower's start",
        )
    steps = leader.steps
    if not on_standby:  # then the leader is
        steps = tuple(replace(one, meanwhile=standbys.snapshots(there)) for one in steps if isinstance(one, Statement))
    return Plan(title, (*follower.steps, *steps), (*follower.warnings, *leader.warnings))


def table_of(rows: Sequence[PairReport]) -> Rows:
    """Return the rows with the reason of each pair below the table."""

    def reasons(shown_rows: Sequence[PairReport]) -> list[object]:
        return [
            styled(f"{row.slot_name}: {row.reason}", SEVERITY_STYLES[_SEVERITIES[slot_pairs.RANKS[row.state]]])
            for row in shown_rows
            if row.reason
        ]

    return Rows(rows, below=reasons)


def _state(row: PairReport) -> object:
    return styled(row.state, SEVERITY_STYLES[_SEVERITIES[slot_pairs.RANKS[row.state]]])


def _repeats(row: PairReport) -> str:
    return f"{size(row.gap_bytes)} lost" if row.state is PairState.pending and row.gap_bytes else size(row.repeat_bytes)


LISTING: Final = Listing(
    PairReport,
    (
        Column("SLOT", lambda row: row.slot_name, "slot_name", kind="name"),
        Column("LEADER", lambda row: row.leader, "leader", priority=3),
        Column("FOLLOWER", lambda row: row.follower, "follower", priority=4),
        Column("STATE", _state, "state"),
        Column("LEADER AT", lambda row: row.leader_lsn, "leader_lsn", priority=5),
        Column("FOLLOWER AT", lambda row: row.follower_lsn, "follower_lsn", priority=6),
        Column("REPEATS", _repeats, "repeat_bytes", kind="number"),
        Column("KEPT THERE", lambda row: size(row.kept_bytes), "kept_bytes", priority=2, kind="number"),
    ),
    "no logical slots that a pair can have",
)


def _nagios(reader: PairSynchronizer) -> None:
    """Print the line of a Nagios plugin, and exit."""
    try:
        found = reader.read()
    except Refused as exc:  # two primaries: the standby was promoted, and nothing protects the slots
        sys.stdout.write(f"PAIRS CRITICAL - {shown(exc.message).replace('|', '/')}\n")
        raise typer.Exit(Severity.CRITICAL.rank) from None
    rank = slot_pairs.worst(found)
    bad = [f"{pair.slot_name} {pair.state}: {pair.reason}" for pair in found if pair.rank]
    data = " ".join(
        f"'{shown(pair.slot_name)}_repeat'={pair.repeat_bytes}B" for pair in found if pair.repeat_bytes is not None
    )
    text = shown("; ".join(bad) or slot_pairs.summary(found)).replace("|", "/")
    sys.stdout.write(f"PAIRS {_SEVERITIES[rank].name} - {text}" + (f" | {data}" if data else "") + "\n")
    raise typer.Exit(rank)


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl slot``."""
    app.command("pairs", cls=ListCommand)(pairs)
