"""``rdsrepl failover check``: whether the slots of a primary survive a failover to its standbys."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rdsrepl.cli.command_classes import ReadCommand
from rdsrepl.cli.completion import complete_target
from rdsrepl.cli.context import global_options
from rdsrepl.cli.failover.servers import read_servers
from rdsrepl.cli.hints import with_selectors
from rdsrepl.cli.options import size_option
from rdsrepl.cli.targets import other_target
from rdsrepl.errors import ExitCode
from rdsrepl.render import Column, emit, listing, sections, size, stacked, styled
from rdsrepl.text.counts import counted
from rdsrepl.text.escapes import shown

if TYPE_CHECKING:
    from rdsrepl.failover.findings import Finding
    from rdsrepl.failover.readiness import Readiness, SlotReadiness
    from rdsrepl.postgres.subscriptions import Publisher

_EXIT: Final = (ExitCode.DONE, ExitCode.WARNING, ExitCode.CRITICAL)
_STATES: Final = ("OK", "WARNING", "CRITICAL")
_STYLES: Final = {"critical": "bold red", "warning": "yellow", "info": "cyan"}
_NAMED: Final = {"failover": "synchronized copy", "pair": "slot pair", "own": "read on the standby", None: "nothing"}


def check(
    ctx: typer.Context,
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="TARGET",
            help="Name the standby: an instance, a target or a connection string; may be repeated.",
            autocompletion=complete_target,
            show_default=False,
        ),
    ],
    subscriber: Annotated[
        list[str] | None,
        typer.Option(
            "--subscriber",
            metavar="TARGET",
            help="Also check how far the subscriptions of this server are; may be repeated.",
            autocompletion=complete_target,
            show_default=False,
        ),
    ] = None,
    max_repeat: Annotated[
        int | None, size_option("--max-repeat", help="Report a copy that repeats more WAL than this; default: 64MB.")
    ] = None,
    nagios: Annotated[
        bool, typer.Option("--nagios", help="Print one line and exit as a Nagios plugin does.", show_default=False)
    ] = False,
) -> None:
    """Check whether the logical slots of a primary survive a failover to a standby, with a remedy for each finding.

    The command's own server is the primary. It changes nothing. The exit code is 0, 8 with warnings, 9 with critical
    findings; with --nagios 0, 1, 2 or 3.

    Example: rdsrepl failover check --instance orders --to orders-replica
    """
    from rdsrepl.failover import readiness

    subscriptions = [one for words in subscriber or () for one in _subscriptions(ctx, words)]
    primary, standbys = read_servers(ctx, to)
    limit = readiness.MAX_REPEAT_BYTES if max_repeat is None else max_repeat
    result = readiness.assess(primary, standbys, max_repeat_bytes=limit, subscriptions=subscriptions)
    reachable = tuple(replace(one, remedy=with_selectors(ctx, one.remedy)) for one in result.findings)
    result = replace(result, findings=reachable)
    rank = 0 if result.level is None else result.level.rank
    if nagios:
        sys.stdout.write(_nagios_line(result, rank) + "\n")
        raise typer.Exit(rank)
    emit(result, global_options(ctx).output, lambda: table(result))
    raise typer.Exit(_EXIT[rank])


def _subscriptions(ctx: typer.Context, words: str) -> list[Publisher]:
    from rdsrepl.postgres import connection, subscriptions

    with connection.open(other_target(ctx, words, "--subscriber")) as conn:
        return subscriptions.publishers(conn)


def table(result: Readiness) -> Any:
    """Return the result for people: the slots, and then the findings with their remedies."""
    columns = (
        Column("SLOT", lambda row: row.slot_name, kind="name"),
        Column("STANDBY", lambda row: row.standby, kind="name"),
        Column("PROTECTED BY", lambda row: _NAMED[row.protected_by]),
        Column("READY", lambda row: "yes" if row.ready else styled("no", "bold red")),
        Column("REPEATS", _repeats, kind="number"),
    )
    parts: list[object] = [listing(result.slots, columns, empty=f"no logical slots on {result.primary}")]
    if result.findings:
        heads = (
            Column("LEVEL", lambda one: styled(one.level.value, _STYLES[one.level.value])),
            Column("CHECK", lambda one: one.check),
            Column("SERVER", lambda one: one.server, kind="name"),
        )
        parts += ["", sections(result.findings, heads, _finding_lines, kind=lambda one: one.check)]
    parts.append(_summary(result))
    return stacked(*parts)


def _repeats(row: SlotReadiness) -> str:
    return size(row.repeat_bytes) if row.ready else ""


def _finding_lines(finding: Finding) -> list[object]:
    return [f"{finding.subject}: {finding.message}", styled(f"→ {finding.remedy}", "dim")]


def _summary(result: Readiness) -> str:
    where = ", ".join(result.standbys)
    unready = len({row.slot_name for row in result.slots if not row.ready})
    if not result.ready:
        lost = f": {counted(unready, 'slot')} would be lost or would lose changes" if unready else ""
        return f"not ready for a failover to {where}{lost}"
    return f"ready for a failover to {where}"


def _nagios_line(result: Readiness, rank: int) -> str:
    first = next((one for one in result.findings if one.level.rank == rank), None)
    text = f"FAILOVER {_STATES[rank]} - "
    if rank == 0 or first is None:
        text += f"{counted(len({row.slot_name for row in result.slots}), 'slot')} ready"
    else:
        more = sum(one.level.rank > 0 for one in result.findings) - 1
        text += f"{first.check}: {first.subject}: {first.message}" + (f" (and {more} more)" if more else "")
    counts = {row.slot_name: row for row in result.slots}
    unready = len({name for name in counts if any(r.slot_name == name and not r.ready for r in result.slots)})
    return shown(" ".join(text.split())).replace("|", "/") + f" | slots={len(counts)} unready={unready}"


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl failover``."""
    app.command("check", cls=ReadCommand)(check)
