"""``rdsrepl cluster``: Multi-AZ DB clusters and Aurora clusters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli import rds_options
from rdsrepl.cli.command_classes import AwsListCommand, AwsReadCommand, AwsWriteCommand, WriteCommand
from rdsrepl.cli.completion import complete_cluster, complete_instance
from rdsrepl.cli.confirm import TypedConfirmation, confirm_and_apply
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.cli.lists import print_list
from rdsrepl.cli.option_bundles import with_bundles
from rdsrepl.cli.targets import aws_target, database_of
from rdsrepl.errors import Error, UsageError
from rdsrepl.render import Column, Listing, emit, facts, listing, stacked
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from rdsrepl.aws.clusters import Cluster
    from rdsrepl.aws.instances import Instance
    from rdsrepl.config import Target
    from rdsrepl.plan import Plan
    from rdsrepl.postgres.slots import Slot

app = typer.Typer(no_args_is_help=True, help="DB clusters: Multi-AZ DB clusters and Aurora clusters.")


class ClusterEngine(StrEnum):
    """The values of ``--engine``."""

    postgres = "postgres"
    aurora_postgresql = "aurora-postgresql"


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member as ``cluster show`` prints it."""

    instance_id: str
    role: str
    status: str
    availability_zone: str | None
    instance_class: str
    parameter_group_status: str
    endpoint: str
    pending_modifications: str | None


_MEMBER_COLUMNS: Final = (
    Column("MEMBER", lambda row: row.instance_id, kind="name"),
    Column("ROLE", lambda row: row.role),
    Column("STATUS", lambda row: row.status),
    Column("ZONE", lambda row: row.availability_zone, priority=3),
    Column("CLASS", lambda row: row.instance_class, priority=4),
    Column("PARAMETERS", lambda row: row.parameter_group_status),
    Column("ENDPOINT", lambda row: row.endpoint, priority=5, kind="name"),
    Column("QUEUED", lambda row: row.pending_modifications, priority=2, kind="prose"),
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The cluster's identifier.", autocompletion=complete_cluster)]


@app.command("list", cls=AwsListCommand)
def list_(ctx: typer.Context) -> None:
    """List the PostgreSQL clusters of the region.

    Example: rdsrepl cluster list
    """
    from rdsrepl.aws import clusters

    columns = (
        Column("CLUSTER", lambda row: row.cluster_id, "cluster_id", kind="name"),
        Column("KIND", lambda row: row.kind.replace("_", " "), "kind", priority=3),
        Column("VERSION", lambda row: row.engine_version, "engine_version", priority=2),
        Column("STATUS", lambda row: row.status, "status"),
        Column("WRITER", lambda row: row.writer, "writer", kind="name"),
        Column("MEMBERS", lambda row: len(row.members), priority=4, kind="number"),
        Column("PARAMETER GROUP", lambda row: row.parameter_group, "parameter_group", priority=5, kind="name"),
    )
    empty = "no PostgreSQL clusters in this region (instances: rdsrepl instance list)"
    print_list(ctx, Listing(clusters.Cluster, columns, empty), lambda: clusters.ls(aws_target(ctx).aws))


@app.command(cls=AwsReadCommand)
def show(ctx: typer.Context, cluster_id: Id) -> None:
    """Show a cluster: members, parameter group, endpoints, and whether it supports logical replication.

    Example: rdsrepl cluster show orders
    """
    from rdsrepl.aws import clusters, instances, release_support

    aws = aws_target(ctx).aws
    cluster = clusters.get(aws, cluster_id)
    known = {instance.instance_id: instance for instance in instances.of_cluster(aws, cluster.cluster_id)}
    members = [
        _member(member.instance_id, member.is_writer, member.parameter_group_status, known)
        for member in cluster.members
    ]
    support = release_support.logical_replication(cluster.kind, cluster.engine_version)
    value = {"cluster": cluster, "members": members, "logical_replication": support}
    emit(
        value,
        global_options(ctx).output,
        lambda: stacked(
            facts(
                [
                    ("cluster", cluster.cluster_id),
                    ("kind, engine", f"{cluster.kind.replace('_', ' ')}, {cluster.engine} {cluster.engine_version}"),
                    ("status", cluster.status),
                    ("writer endpoint", f"{cluster.endpoint}:{cluster.port}"),
                    ("reader endpoint", f"{cluster.reader_endpoint}:{cluster.port}"),
                    ("parameter group", cluster.parameter_group),
                    ("storage", rds_options.storage(cluster)),
                    ("queued", rds_options.queued_modifications(cluster)),
                    ("master user", _login(cluster)),
                    ("logical replication", support.words),
                ]
            ),
            "",
            listing(members, _MEMBER_COLUMNS, empty="no members"),
        ),
    )


@app.command(cls=AwsWriteCommand)
@with_bundles
def create(
    ctx: typer.Context,
    cluster_id: Annotated[str, typer.Argument(metavar="ID", help="The new cluster's identifier.")],
    options: rds_options.NewServerOptions,
    engine: Annotated[
        ClusterEngine,
        typer.Option(help="Create a Multi-AZ DB cluster of a writer and two readers (postgres), or an Aurora cluster."),
    ] = ClusterEngine.postgres,
    instances: Annotated[
        int, typer.Option(min=1, max=16, metavar="N", help="Create this many members of an Aurora cluster.")
    ] = 2,
    timeout: rds_options.Timeout = 3600.0,
) -> None:
    """Create a cluster and wait until it is available.

    Example: rdsrepl cluster create orders --class db.r6gd.large --storage 200 --param-group orders-logical
    """
    from rdsrepl.aws import clusters, engines

    kind: engines.ClusterTopology = "aurora" if engine is ClusterEngine.aurora_postgresql else "multi_az_cluster"
    if kind == "aurora" and (options.storage or options.iops):
        raise UsageError("Aurora storage grows automatically", hint="omit --storage and --iops")
    if kind == "multi_az_cluster" and options.storage is None:
        raise UsageError("--storage is missing", hint="add --storage GIB: a Multi-AZ DB cluster has a fixed size")
    cluster_id = clusters.check_name(cluster_id, kind)
    options.check_class()
    target = aws_target(ctx)
    new = clusters.NewCluster(
        cluster_id=cluster_id,
        kind=kind,
        instance_class=options.instance_class,
        engine_version=options.engine_version,
        instances=instances,
        storage_gib=options.storage,
        # The default of AWS is io1, which needs --iops.
        storage_type=options.storage_type or (None if kind == "aurora" else "io1" if options.iops else "gp3"),
        iops=options.iops,
        subnet_group=options.subnet_group,
        security_groups=tuple(options.security_group or ()),
        parameter_group=options.param_group,
        master_user=options.master_user or "dbadmin",
        password=options.password(target.aws),
        database_name=options.dbname,
        port=options.port,
        deletion_protection=options.deletion_protection,
    )
    existing, ready = clusters.existing(target, new)
    plan = clusters.create(new, existing=existing, ready=ready, timeout_seconds=timeout)
    if kind == "multi_az_cluster" and existing is None:
        plan = replace(plan, warnings=(*plan.warnings, rds_options.storage_request(new)))
    if confirm_and_apply(ctx, plan, target=target):
        note(ctx, f"next: {command('doctor --cluster {}', cluster_id)}")


@app.command(cls=WriteCommand)
def reboot(
    ctx: typer.Context,
    cluster_id: Id,
    with_pending: rds_options.WithPending = False,
    timeout: rds_options.Timeout = 1800.0,
) -> None:
    """Reboot every member of a cluster, one at a time, without failover: readers first, on Aurora the writer first.

    Example: rdsrepl cluster reboot orders
    """
    from rdsrepl.aws import clusters, instances, pending_modifications
    from rdsrepl.parameters import rollout
    from rdsrepl.plan import Plan
    from rdsrepl.postgres import verification

    target = database_of(ctx, cluster=cluster_id)
    cluster = clusters.get(target.aws, cluster_id)
    clusters.require_available(cluster)
    members = instances.of_cluster(target.aws, cluster.cluster_id)
    queued = rollout.queued_on(cluster, *members)
    notes = pending_modifications.check_reboot(queued, allowed=with_pending)
    steps = rollout.reboot_cluster(
        cluster,
        rollout.MemoryChanges((), ()),
        only_needed=False,
        timeout_seconds=timeout,
        servers={member.instance_id: verification.ServerProbe() for member in members},
    )
    warning = "each server is rebooted, one at a time; its connections are closed"
    confirm_and_apply(ctx, Plan(f"reboot cluster {cluster.cluster_id}", tuple(steps), (warning, *notes)), target=target)


@app.command(cls=WriteCommand)
def failover(
    ctx: typer.Context,
    cluster_id: Id,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="MEMBER",
            help="Make this member the writer.",
            autocompletion=complete_instance,
            show_default="AWS's choice",
        ),
    ] = None,
    timeout: rds_options.Timeout = 900.0,
) -> None:
    """Make another member the writer, verify that each logical slot is still there, and show its position.

    Example: rdsrepl cluster failover orders --to orders-2
    """
    from rdsrepl.aws import clusters, pending_modifications
    from rdsrepl.parameters import rollout

    target = database_of(ctx, cluster=cluster_id)
    cluster = clusters.get(target.aws, cluster_id)
    plan = clusters.failover(cluster, to=to, timeout_seconds=timeout)
    notes = pending_modifications.kept(rollout.queued_on(cluster))
    fail_over(ctx, target, replace(plan, warnings=(*plan.warnings, *notes)))


@app.command(cls=WriteCommand)
@with_bundles
def delete(
    ctx: typer.Context, cluster_id: Id, options: rds_options.DeletionOptions, timeout: rds_options.Timeout = 3600.0
) -> None:
    """Delete a cluster with all its members; confirm with its identifier.

    Example: rdsrepl cluster delete orders --final-snapshot orders-final
    """
    from rdsrepl.aws import clusters, instances, statuses

    options.require_decision()
    target = database_of(ctx, cluster=cluster_id)
    cluster = clusters.get(target.aws, cluster_id)
    calls = []
    if cluster.kind == "aurora":
        known = {one.instance_id: one.status for one in instances.of_cluster(target.aws, cluster.cluster_id)}
        # Readers first: if the writer were deleted, AWS would promote a reader.
        order = [member.instance_id for member in reversed(cluster.members)]
        calls = [instances.delete_call(name) for name in order if known.get(name) != statuses.DELETING]
    plan = clusters.delete(cluster, calls, final_snapshot=options.final_snapshot, timeout_seconds=timeout)
    slots, _ = _logical_slots(target)
    if slots:
        names = ", ".join(slot.slot_name for slot in slots)
        plan = replace(plan, warnings=(*plan.warnings, f"its logical slots are deleted as well: {names}"))
    confirm_and_apply(
        ctx, plan, target=target, typed=TypedConfirmation(cluster.cluster_id, "--confirm", options.confirm)
    )


def fail_over(ctx: typer.Context, target: Target, plan: Plan) -> None:
    """Apply a failover plan; show the logical slots before and after it, and verify that they are still there."""
    from rdsrepl.postgres import verification

    slots, unknown = _logical_slots(target)
    if unknown is not None:
        warning = f"could not read the slots, so they are not verified: {unknown}"
        plan = replace(plan, warnings=(*plan.warnings, warning))
    else:
        plan = replace(plan, steps=(*plan.steps, verification.slots([slot.slot_name for slot in slots])))
    show_slots(ctx, "before", slots)
    if confirm_and_apply(ctx, plan, target=target):
        show_slots(ctx, "after", _logical_slots(target)[0])


def show_slots(ctx: typer.Context, when: str, slots: tuple[Slot, ...]) -> None:
    """Print the position of each logical slot."""
    for slot in slots:
        consumer = f", read by PID {slot.active_pid}" if slot.active_pid else ", inactive"
        note(ctx, f"{when}: slot {slot.slot_name} at {slot.confirmed_flush_lsn}, {slot.wal_status}{consumer}")


def _logical_slots(target: Target) -> tuple[tuple[Slot, ...], str | None]:
    """Return the writer's logical slots; or none, and why they could not be read."""
    from rdsrepl.postgres import connection, slots

    try:
        with connection.open(target, settings={"statement_timeout": "10s"}) as conn:
            return tuple(slot for slot in slots.ls(conn) if slot.slot_type == "logical" and not slot.temporary), None
    except Error as exc:
        return (), exc.message


def _member(instance_id: str, is_writer: bool, group_status: str, known: dict[str, Instance]) -> MemberRow:
    instance = known.get(instance_id)
    return MemberRow(
        instance_id=instance_id,
        role="writer" if is_writer else "reader",
        status=instance.status if instance else "?",
        availability_zone=instance.availability_zone if instance else None,
        instance_class=instance.instance_class if instance else "",
        parameter_group_status=group_status,
        endpoint=f"{instance.endpoint}:{instance.port}" if instance and instance.endpoint else "",
        pending_modifications=rds_options.queued_modifications(instance) if instance else None,
    )


def _login(cluster: Cluster) -> str:
    logins = [f"password in {cluster.master_secret}"] if cluster.master_secret else []
    logins += ["IAM login enabled"] if cluster.iam_auth else []
    return ", ".join([cluster.master_user or "-", *logins])
