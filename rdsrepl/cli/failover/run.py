"""``rdsrepl failover run``: from a primary to its standby, planned or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rdsrepl.cli import rds_options
from rdsrepl.cli.command_classes import WriteCommand
from rdsrepl.cli.completion import complete_target
from rdsrepl.cli.confirm import confirm_and_apply
from rdsrepl.cli.console import note, warn
from rdsrepl.cli.context import apply_options
from rdsrepl.cli.failover.servers import read_server
from rdsrepl.cli.option_bundles import with_bundles
from rdsrepl.cli.options import duration_option, flag_option
from rdsrepl.cli.targets import database_target, other_target
from rdsrepl.errors import Error, NotPrimary, Refused, Unreachable, UsageError
from rdsrepl.lsn import Lsn
from rdsrepl.text.commands import command
from rdsrepl.text.masking import mask
from rdsrepl.units import format_size

if TYPE_CHECKING:
    from rdsrepl.config import Target
    from rdsrepl.failover.switchover import Unplanned
    from rdsrepl.plan import Plan
    from rdsrepl.postgres.failover_servers import FailoverServer
    from rdsrepl.switchover.planner import Options, Servers


@with_bundles
def run(
    ctx: typer.Context,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            help="Promote this standby: an instance, a target or a connection string.",
            autocompletion=complete_target,
            show_default=False,
        ),
    ],
    backups: rds_options.PromotionOptions,
    fence: Annotated[
        str | None,
        typer.Option(
            "--fence", metavar="COMMAND", help="Run this shell command, which stops the writers.", show_default=False
        ),
    ] = None,
    idle: Annotated[bool, flag_option("--idle", help="Wait until no transaction writes.")] = False,
    is_unplanned: Annotated[
        bool, flag_option("--unplanned", help="Promote the standby as it is, after showing what is lost.")
    ] = False,
    subscriber: Annotated[
        list[str] | None,
        typer.Option(
            "--subscriber",
            metavar="TARGET",
            help="Point the subscriptions of this server to the new primary; may be repeated.",
            autocompletion=complete_target,
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, duration_option("--timeout", help="Time out each wait after this long.")] = 1800.0,
) -> None:
    """Switch over to a standby without losing or repeating a change, and prove it.

    The command's own server is the primary. The writers are stopped with --fence or --idle; then every consumer, the
    standby and the copies of the slots must reach the same position before the standby is promoted. A run that was
    interrupted continues when it is run again.

    Example: rdsrepl failover run --instance orders --to orders-replica --fence ./stop-writers.sh
    """
    from rdsrepl.state import switchovers

    _check_options(fence, idle=idle, is_unplanned=is_unplanned)
    new_target, old_target = other_target(ctx, to, "--to"), database_target(ctx)
    new = read_server(new_target, to, "--to")
    old = _old(old_target, new, is_unplanned=is_unplanned)
    servers = _servers(old_target, new_target, old, new)
    received = max(new.received_lsn or Lsn(0), new.lsn or Lsn(0)) if is_unplanned and new.in_recovery else None
    options = _options(ctx, servers, old or new, fence, backups, timeout, subscriber or (), received)
    if not new.in_recovery:
        plan = _finish(servers, options, old, new)
    elif is_unplanned:
        plan = _unplanned(servers, options, old, new)
    else:
        assert old is not None
        plan = _planned(servers, options, old, new)
        if not apply_options(ctx).plans_only:
            switchovers.require_writable()
    if confirm_and_apply(ctx, plan, target=new_target) and old is not None and not apply_options(ctx).plans_only:
        _next_steps(ctx, servers, old)


def _check_options(fence: str | None, *, idle: bool, is_unplanned: bool) -> None:
    if is_unplanned and (fence is not None or idle):
        raise UsageError(
            "--unplanned promotes at once: --fence and --idle belong to a planned switchover", hint="omit one"
        )
    if fence is not None and idle:
        raise UsageError("--fence and --idle exclude each other", hint="omit one")
    if fence is not None and not fence.strip():
        raise UsageError("--fence is empty", hint="give a command that stops the writers, or --idle")
    if fence is None and not idle and not is_unplanned:
        raise UsageError(
            "how the writers are stopped is not given",
            hint="add --fence COMMAND, or --idle if you stop them yourself; if the primary is lost: --unplanned",
        )


def _old(target: Target, new: FailoverServer, *, is_unplanned: bool) -> FailoverServer | None:
    """Return the old primary; None if it does not answer and need not.

    Raises:
        Refused: the two servers are no primary and standby.
        Unreachable: it does not answer.
    """
    from rdsrepl.failover import server_rules

    try:
        old = read_server(target, "", "")
    except Unreachable as exc:
        if is_unplanned or not new.in_recovery:
            return None
        exc.hint = (
            f"{exc.hint}; if the primary is lost: --unplanned" if exc.hint else "if the primary is lost: --unplanned"
        )
        raise
    if new.in_recovery:
        problem = server_rules.different_servers(old, new)
        if problem is not None:
            raise Refused(problem, hint="name the primary with --instance, -t or --dsn, and its standby with --to")
    elif old.in_recovery or old.system_identifier != new.system_identifier or _started(old) == _started(new):
        raise NotPrimary(
            f"{new.label} is not a standby of {old.label}",
            hint="name the primary with --instance, -t or --dsn, and its standby with --to",
        )
    return old


def _started(server: FailoverServer) -> object:
    return None if server.wal is None else server.wal.started_at


def _servers(old_target: Target, new_target: Target, old: FailoverServer | None, new: FailoverServer) -> Servers:
    from rdsrepl.aws import locations
    from rdsrepl.switchover.planner import Servers

    found = locations.server_of(new_target) if new_target.aws.identifier else None
    label = old.label if old is not None else old_target.label
    instance = None if found is None else found.instance
    return Servers(old_target, new_target, label, new.label, instance, new.is_managed, new.may_promote)


def _options(
    ctx: typer.Context,
    servers: Servers,
    publisher: FailoverServer,
    fence: str | None,
    backups: rds_options.PromotionOptions,
    timeout: float,
    subscribers: tuple[str, ...] | list[str],
    received: Lsn | None,
) -> Options:
    from rdsrepl.switchover import subscribers as subscriber_steps
    from rdsrepl.switchover.planner import Options

    targets = [other_target(ctx, words, "--subscriber") for words in subscribers]
    repointed, warnings = subscriber_steps.repoint(targets, servers, publisher, received=received)
    for warning in warnings:
        warn(ctx, warning)
    return Options(fence, timeout, backups=backups.given(), subscriptions=tuple(repointed))


def _planned(servers: Servers, options: Options, old: FailoverServer, new: FailoverServer) -> Plan:
    from rdsrepl.failover import readiness, switchover
    from rdsrepl.switchover import planner

    ready = readiness.assess(old, (new,))
    try:
        return planner.planned(servers, options, ready, consumers=switchover.consumers(old))
    except Refused as exc:
        exc.hint = f"{exc.hint}; all findings: {command('failover check --to {}', _words(servers.new))}"
        raise


def _unplanned(servers: Servers, options: Options, old: FailoverServer | None, new: FailoverServer) -> Plan:
    from rdsrepl.failover import switchover
    from rdsrepl.switchover import planner

    found = switchover.unplanned(new, old)
    usable = {one.slot_name: one.at for one in found.slots if one.usable and one.at is not None}
    return planner.unplanned(servers, options, lost=_losses(found, servers), slots=usable, is_compared=old is not None)


def _losses(found: Unplanned, servers: Servers) -> list[str]:
    if found.missing_bytes is None:
        lost = f"{servers.old_label} does not answer: what it committed after {found.received_lsn} is lost, if anything"
        if servers.instance is None:
            lost += f"; whether {servers.new_label} is its standby was not checked"
    elif found.missing_bytes:
        lost = f"{servers.old_label} has {format_size(found.missing_bytes)} of WAL that {servers.new_label} never got"
    else:
        lost = f"{servers.new_label} has all WAL of {servers.old_label} at this moment"
    return [lost, *(f"slot {one.slot_name}: {one.why}" for one in found.slots)]


def _finish(servers: Servers, options: Options, old: FailoverServer | None, new: FailoverServer) -> Plan:
    from rdsrepl.failover import switchover
    from rdsrepl.state import switchovers
    from rdsrepl.switchover import planner

    known = switchovers.last(new.system_identifier or "", new=servers.new_label)
    if known is not None:
        return planner.finish(servers, options, slots=known.slots)
    names = [slot.slot_name for slot in switchover.streamed(old)] if old is not None else []
    present = {name: slot.confirmed_flush_lsn for name in names if (slot := new.slot(name)) is not None}
    warning = (
        f"{servers.new_label} was promoted, and this machine has no record of a switchover to it: the positions of its "
        "slots are not compared; failover diff says what was lost"
        + ("" if old is not None else f"; whether it was a standby of {servers.old_label} was not checked")
    )
    slots = {name: lsn for name, lsn in present.items() if lsn is not None}
    return planner.finish(servers, options, slots=slots, warnings=(warning,))


def _next_steps(ctx: typer.Context, servers: Servers, old: FailoverServer) -> None:
    from rdsrepl.failover import switchover

    for one in switchover.consumers(old):
        note(ctx, f"point this consumer to {servers.new_label}: {one}")
    if switchover.streamed(old):
        note(
            ctx,
            f"the slots of {servers.old_label} keep WAL there; when their consumers read {servers.new_label}, drop "
            "them: rdsrepl slot prune --all",
        )
    try:
        words = _words(servers.old), _words(servers.new)
    except Error:
        return
    note(ctx, f"to see that nothing was lost: {command('failover diff --old {} --new {}', *words)}")


def _words(target: Target) -> str:
    """Return the words that name a server in an option; a password is left out."""
    if target.dsn:
        return mask(target.dsn)
    return target.aws.instance or target.label.removeprefix("target ")


def register(app: typer.Typer) -> None:
    """Add the verb to ``rdsrepl failover``."""
    app.command("run", cls=WriteCommand)(run)
