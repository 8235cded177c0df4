"""The plan of a switchover: the steps on both servers, and on the subscribers.

Nothing is stored to resume from but the marker: which steps are left follows from the two servers. A run that was
killed before the promotion begins again (a second marker does no harm); after it, the rest is proven and done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rdsrepl.aws import promotions
from rdsrepl.aws.promotions import Backups
from rdsrepl.errors import BadValue, Denied, Refused
from rdsrepl.failover.findings import Level
from rdsrepl.plan import LocalCommand, Plan, Statement, Step, Wait
from rdsrepl.switchover.probes import QUIET_SECONDS, Progress
from rdsrepl.text.commands import command
from rdsrepl.text.counts import counted
from rdsrepl.units import format_duration

if TYPE_CHECKING:
    from rdsrepl.aws.instances import Instance
    from rdsrepl.config import Target
    from rdsrepl.failover.readiness import Readiness
    from rdsrepl.lsn import Lsn

PROOF_SECONDS: Final = 120.0
_VERIFY_SECONDS: Final = 0.0
_PROMOTE_SECONDS: Final = 600
# Decoders of this project leave it out of their output; every other consumer gets one small message, or nothing.
_MARKER: Final = "SELECT pg_catalog.pg_logical_emit_message(true, 'rdsrepl.heartbeat', 'switchover') AS marker"
_PROMOTE: Final = (
    "SELECT pg_catalog.pg_promote(true, 600) AS promoted WHERE pg_catalog.pg_is_in_recovery()"  # waits until it is
)


@dataclass(frozen=True, slots=True)
class Servers:
    """The two servers of a switchover.

    Attributes:
        old, new: the primary, and the standby to promote.
        old_label, new_label: both in messages.
        instance: the standby as RDS describes it; None where the target does not name an instance.
        is_managed: whether RDS runs the standby.
        may_promote: whether this role may call ``pg_promote`` there; None where that is not known.
    """

    old: Target
    new: Target
    old_label: str
    new_label: str
    instance: Instance | None = None
    is_managed: bool = False
    may_promote: bool | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How a switchover is done.

    Attributes:
        fence: the user's command that stops the writers; None waits until they are idle.
        timeout_seconds: of each wait, and of the command.
        quiet_seconds: for how long no transaction may write before the marker.
        backups: of the promoted instance.
        subscriptions: what points subscribers to the new primary, after a verification.
    """

    fence: str | None = None
    timeout_seconds: float = 600.0
    quiet_seconds: float = QUIET_SECONDS
    backups: Backups = field(default_factory=Backups)
    subscriptions: tuple[Step, ...] = ()


def planned(servers: Servers, options: Options, ready: Readiness, *, consumers: Sequence[str] = ()) -> Plan:
    """Plan a switchover that loses and repeats nothing.

    Args:
        servers: the two servers.
        options: how.
        ready: what ``readiness.assess`` found; warnings are shown with the plan.
        consumers: those that read slots of the old primary.

    Raises:
        Refused: a finding is critical.
        BadValue: RDS runs the standby, and its instance is not named.
        Denied: this role may not promote it.
    """
    critical = [one for one in ready.findings if one.level is Level.critical]
    if critical:
        first, more = critical[0], len(critical) - 1
        raise Refused(
            f"{counted(len(critical), 'critical finding')}: {first.check}: {first.subject} on {first.server}: "
            f"{first.message}" + (f" (and {more} more)" if more else "") + "; nothing was changed",
            hint=first.remedy,
        )
    warned = [f"{one.subject}: {one.message}" for one in ready.findings if one.level is Level.warning]
    labels, quiet = (servers.old_label, servers.new_label), options.quiet_seconds
    progress = Progress(servers.old, servers.new, labels, quiet_seconds=quiet, is_managed=servers.is_managed)
    seconds = options.timeout_seconds
    steps: list[Step] = []
    if options.fence is not None:
        steps.append(
            LocalCommand(
                "fence the writers",
                options.fence,
                seconds,
                reason="your command; run again if this command is run again",
                effect="change",
            )
        )
    steps += [
        Wait(f"wait until no transaction has written for {format_duration(quiet)}", progress.quiet, seconds),
        _marker(servers),
        Wait("wait until consumers, standby and slot copies have reached the marker", progress.reached, seconds),
        Wait("verify that nothing was written after the marker", progress.unwritten, _VERIFY_SECONDS),
        *_promotion(servers, options),
        Wait("verify that each slot is where its consumer was", progress.proven, PROOF_SECONDS),
        *options.subscriptions,
        Wait("verify that the old primary was not written to meanwhile", progress.unwritten_since, _VERIFY_SECONDS),
    ]
    return Plan(
        f"switch over from {servers.old_label} to {servers.new_label}",
        tuple(steps),
        (*_warnings(servers, options), *_to_follow(servers, consumers, options), *warned),
    )


def unplanned(
    servers: Servers, options: Options, *, lost: Sequence[str], slots: Mapping[str, Lsn], is_compared: bool
) -> Plan:
    """Plan to promote the standby as it is.

    Args:
        servers: the two servers; the old primary need not answer.
        options: how.
        lost: what the promotion loses, in words.
        slots: the usable slots of the standby, and where they are.
        is_compared: whether the old primary answered, and is the primary of the standby.

    Raises:
        Refused: the standby is a read replica of another instance.
        BadValue: RDS runs the standby, and its instance is not named.
        Denied: this role may not promote it.
    """
    if not is_compared:
        _require_replica_of_old(servers)
    progress = Progress(servers.old, servers.new, (servers.old_label, servers.new_label), expected=slots)
    steps: tuple[Step, ...] = (
        *_promotion(servers, options),
        Wait("verify that each slot is still there", progress.proven, PROOF_SECONDS),
        *options.subscriptions,
    )
    title = f"promote {servers.new_label} without a proof"
    return Plan(title, steps, (*lost, *_warnings(servers, options)))


def finish(servers: Servers, options: Options, *, slots: Mapping[str, Lsn], warnings: Sequence[str] = ()) -> Plan:
    """Plan what is left after the promotion: prove the slots, point the subscribers to the new primary."""
    progress = Progress(servers.old, servers.new, (servers.old_label, servers.new_label), expected=slots)
    steps: tuple[Step, ...] = (
        Wait("verify that each slot is where its consumer was", progress.proven, PROOF_SECONDS),
        *options.subscriptions,
    )
    return Plan(f"finish the switchover to {servers.new_label}", steps, tuple(warnings))


def _require_replica_of_old(servers: Servers) -> None:
    """Make sure, where the old primary does not answer, that RDS names it as the source of the standby.

    Raises:
        Refused: the standby is a read replica of another instance.
    """
    old, instance = servers.old.aws.instance, servers.instance
    if old is None or instance is None or instance.source_id in (None, old.lower()):
        return
    raise Refused(
        f"{servers.new_label} is a read replica of {instance.source_id}, not of {old}, which does not answer",
        hint=f"name a replica of {old} with --to; to promote this one in spite of that: "
        f"{command('instance promote {}', instance.instance_id)}",
    )


def _marker(servers: Servers) -> Statement:
    from psycopg import sql

    return Statement(
        "write a marker after the last transaction",
        sql.SQL(_MARKER),
        target=servers.old,
        reason="a consumer that has confirmed it has everything",
        effect="change",
        timeout_seconds=30.0,
    )


def _promotion(servers: Servers, options: Options) -> tuple[Step, ...]:
    if servers.instance is not None:
        return promotions.steps(servers.instance, backups=options.backups, timeout_seconds=options.timeout_seconds)
    if servers.is_managed:
        raise BadValue(
            f"RDS runs {servers.new_label}, and does not let pg_promote be called; only the instance can be promoted",
            hint="name it with --to INSTANCE, and the primary with --instance",
        )
    if servers.may_promote is False:
        raise Denied(
            f"this role may not promote {servers.new_label}: it may not call pg_promote",
            hint="connect there as a superuser, or: GRANT EXECUTE ON FUNCTION pg_catalog.pg_promote TO NAME",
            sqlstate="42501",
        )
    from psycopg import sql

    return (
        Statement(
            f"promote {servers.new_label}",
            sql.SQL(_PROMOTE),
            target=servers.new,
            guard="it is not a standby any more",
            effect="change",
            timeout_seconds=_PROMOTE_SECONDS,
            done_if=sql.SQL("SELECT NOT pg_catalog.pg_is_in_recovery()"),
        ),
    )


def _warnings(servers: Servers, options: Options) -> tuple[str, ...]:
    if servers.instance is not None:
        return (*_other_address(servers), *promotions.warnings(servers.instance, options.backups))
    return (f"{servers.old_label} goes on running and accepts writes: keep its writers stopped",)


def _other_address(servers: Servers) -> tuple[str, ...]:
    """Warn where the checks go to another address than the promotion: it can be a tunnel, or another server."""
    from rdsrepl.postgres import conninfo

    instance = servers.instance
    if instance is None or instance.endpoint is None:
        return ()
    checked = conninfo.address(servers.new)
    if (checked.host.lower(), checked.port) == (instance.endpoint.lower(), str(instance.port)):
        return ()
    return (
        f"instance {instance.instance_id} is promoted, whose endpoint is {instance.endpoint}:{instance.port}; what is "
        f"checked is {checked.host}:{checked.port}: make sure that this is the same server",
    )


def _to_follow(servers: Servers, consumers: Sequence[str], options: Options) -> tuple[str, ...]:
    """Say which consumers have to be pointed to the new primary."""
    named = {step.key for step in options.subscriptions if isinstance(step, Statement)}
    others = [one for one in consumers if one.partition(":")[0] not in named]
    if not others:
        return ()
    return (
        f"after the promotion point these consumers to {servers.new_label}, and stop those that cannot follow: "
        + "; ".join(others),
    )
