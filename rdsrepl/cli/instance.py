"""``rdsrepl instance``: DB instances, read replicas, members of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rdsrepl.cli import rds_options
from rdsrepl.cli.cluster import fail_over
from rdsrepl.cli.command_classes import AwsListCommand, AwsReadCommand, AwsWriteCommand, WriteCommand
from rdsrepl.cli.completion import complete_cluster, complete_instance
from rdsrepl.cli.confirm import TypedConfirmation, confirm_and_apply
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.cli.lists import print_list
from rdsrepl.cli.option_bundles import with_bundles
from rdsrepl.cli.options import flag_option
from rdsrepl.cli.targets import aws_target, database_of
from rdsrepl.errors import Refused, UsageError
from rdsrepl.render import Column, Listing, emit, facts
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from rdsrepl.aws.instances import Instance
    from rdsrepl.plan import Plan

app = typer.Typer(no_args_is_help=True, help="DB instances: standalone, read replicas, members of clusters.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The instance's identifier.", autocompletion=complete_instance)]


@app.command("list", cls=AwsListCommand)
def list_(ctx: typer.Context) -> None:
    """List the PostgreSQL instances of the region.

    Example: rdsrepl instance list
    """
    from rdsrepl.aws import instances

    columns = (
        Column("INSTANCE", lambda row: row.instance_id, "instance_id", kind="name"),
        Column("PART OF", _part_of, "cluster_id", priority=2, kind="name"),
        Column("VERSION", lambda row: row.engine_version, "engine_version", priority=3),
        Column("STATUS", lambda row: row.status, "status"),
        Column("CLASS", lambda row: row.instance_class, "instance_class", priority=5),
        Column("ZONE", lambda row: row.availability_zone, "availability_zone", priority=4),
        Column("PARAMETER GROUP", lambda row: row.parameter_group, "parameter_group", priority=6, kind="name"),
        Column("PARAMETERS", lambda row: row.parameter_group_status, "parameter_group_status"),
    )
    shown = Listing(instances.Instance, columns, "no PostgreSQL instances in this region")
    print_list(ctx, shown, lambda: instances.ls(aws_target(ctx).aws))


@app.command(cls=AwsReadCommand)
def show(ctx: typer.Context, instance_id: Id) -> None:
    """Show an instance: status, endpoint, parameter group, replicas, and whether it supports logical replication.

    Example: rdsrepl instance show orders-1
    """
    from rdsrepl.aws import instances, release_support

    instance = instances.get(aws_target(ctx).aws, instance_id)
    support = release_support.logical_replication(instance.topology, instance.engine_version)
    value = {"instance": instance, "logical_replication": support}
    emit(
        value,
        global_options(ctx).output,
        lambda: facts(
            [
                ("instance", instance.instance_id),
                ("engine", f"{instance.engine} {instance.engine_version}"),
                ("part of", _part_of(instance)),
                ("status", instance.status),
                ("class, zone", f"{instance.instance_class}, {instance.availability_zone or '-'}"),
                ("multi-AZ", instance.multi_az),
                ("endpoint", f"{instance.endpoint}:{instance.port}" if instance.endpoint else None),
                ("parameter group", f"{instance.parameter_group}, {instance.parameter_group_status}"),
                ("read replicas", instance.replicas),
                ("storage", rds_options.storage(instance)),
                ("queued", rds_options.queued_modifications(instance)),
                ("master user", instance.master_user),
                ("logical replication", support.words),
            ]
        ),
    )


@app.command(cls=AwsWriteCommand)
@with_bundles
def create(
    ctx: typer.Context,
    instance_id: Annotated[str, typer.Argument(metavar="ID", help="The new instance's identifier.")],
    options: rds_options.NewServerOptions,
    replica_of: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Create a read replica of this instance.", autocompletion=complete_instance),
    ] = None,
    in_cluster: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Create a member of this Aurora cluster.", autocompletion=complete_cluster),
    ] = None,
    multi_az: Annotated[bool, flag_option("--multi-az", help="Create a standby in another zone.")] = False,
    timeout: rds_options.Timeout = 3600.0,
) -> None:
    """Create an instance, a read replica or a member of an Aurora cluster, and wait until it is available.

    Example: rdsrepl instance create orders --class db.r6g.large --storage 100 --param-group orders-logical
    """
    from dataclasses import replace

    from rdsrepl.aws import instances, reboots

    _check_create(options, replica_of=replica_of, in_cluster=in_cluster, multi_az=multi_az)
    instance_id = instances.check_name(instance_id)
    options.check_class()
    target = aws_target(ctx)
    new = instances.NewInstance(
        instance_id=instance_id,
        instance_class=options.instance_class,
        engine_version=options.engine_version,
        replica_of=replica_of,
        cluster_id=in_cluster,
        storage_gib=options.storage,
        storage_type=options.storage_type,
        iops=options.iops,
        multi_az=multi_az,
        subnet_group=options.subnet_group,
        security_groups=tuple(options.security_group or ()),
        parameter_group=options.param_group,
        master_user=options.master_user or "dbadmin",
        password=options.password(target.aws),
        database_name=options.dbname,
        port=options.port,
        deletion_protection=options.deletion_protection,
    )
    there = instances.existing(target.aws, new)
    if replica_of and there is None:
        instances.require_replicable(target.aws, replica_of)
    plan = instances.create(new, existing=there, timeout_seconds=timeout)
    group = options.param_group
    has_group = there is not None and (there.parameter_group, there.parameter_group_status) == (group, "in-sync")
    if replica_of and group and not has_group:
        attach = instances.attach(instance_id, group, timeout_seconds=timeout)
        reboot = reboots.steps(instance_id, timeout_seconds=timeout, only_needed=True)
        plan = replace(plan, steps=(*plan.steps, *attach, *reboot))
    if confirm_and_apply(ctx, plan, target=target):
        note(ctx, f"next: {command('doctor --instance {}', instance_id)}")


@app.command(cls=WriteCommand)
def reboot(
    ctx: typer.Context,
    instance_id: Id,
    with_pending: rds_options.WithPending = False,
    timeout: rds_options.Timeout = 1800.0,
) -> None:
    """Reboot an instance without failover.

    Example: rdsrepl instance reboot orders-2
    """
    from rdsrepl.aws import instances

    target = database_of(ctx, instance=instance_id)
    instance = instances.get(target.aws, instance_id)
    instances.require_available(instance)
    confirm_and_apply(
        ctx, _reboot(instance, failover=False, with_pending=with_pending, timeout_seconds=timeout), target=target
    )


@app.command(cls=WriteCommand)
def failover(
    ctx: typer.Context,
    instance_id: Id,
    with_pending: rds_options.WithPending = False,
    timeout: rds_options.Timeout = 1800.0,
) -> None:
    """Fail a Multi-AZ instance over to its standby, and verify that each logical slot is still there.

    Static parameters that are pending a reboot stay pending.

    Example: rdsrepl instance failover orders
    """
    from rdsrepl.aws import instances

    target = database_of(ctx, instance=instance_id)
    instance = instances.get(target.aws, instance_id)
    instances.require_available(instance)
    if instance.cluster_id is not None:
        raise Refused(
            f"{instance.instance_id} is a member of cluster {instance.cluster_id}",
            hint=f"fail over the cluster: {command('cluster failover {}', instance.cluster_id)}",
        )
    if not instance.multi_az:
        raise Refused(
            f"instance {instance.instance_id} has no standby in another zone",
            hint="only a Multi-AZ instance can fail over",
        )
    fail_over(ctx, target, _reboot(instance, failover=True, with_pending=with_pending, timeout_seconds=timeout))


@app.command(cls=WriteCommand)
@with_bundles
def promote(
    ctx: typer.Context,
    instance_id: Id,
    backups: rds_options.PromotionOptions,
    timeout: rds_options.Timeout = 3600.0,
) -> None:
    """Promote a read replica to a standalone instance, and verify that each logical slot is still there.

    Its source goes on running: stop its writers before. failover run does that with proofs, and promotes only then.

    Example: rdsrepl instance promote orders-replica --backup-retention 7
    """
    from rdsrepl.aws import instances, promotions

    target = database_of(ctx, instance=instance_id)
    instance = instances.get(target.aws, instance_id)
    plan = promotions.promote(instance, backups=backups.given(), timeout_seconds=timeout)
    if not plan:
        confirm_and_apply(ctx, plan, target=target)
        return
    fail_over(ctx, target, plan)


@app.command(cls=AwsWriteCommand)
@with_bundles
def delete(
    ctx: typer.Context, instance_id: Id, options: rds_options.DeletionOptions, timeout: rds_options.Timeout = 3600.0
) -> None:
    """Delete an instance; confirm with its identifier.

    Example: rdsrepl instance delete orders --final-snapshot orders-final
    """
    from rdsrepl.aws import instances

    target = aws_target(ctx)
    instance = instances.get(target.aws, instance_id)
    if instance.cluster_id is None and instance.replica_of is None:
        options.require_decision()
    elif options.final_snapshot is not None:
        raise UsageError(
            f"AWS creates no final snapshot of {instance.instance_id}: {_part_of(instance)}",
            hint="omit --final-snapshot",
        )
    plan = instances.delete(instance, final_snapshot=options.final_snapshot, timeout_seconds=timeout)
    confirm_and_apply(
        ctx, plan, target=target, typed=TypedConfirmation(instance.instance_id, "--confirm", options.confirm)
    )


def _check_create(
    options: rds_options.NewServerOptions, *, replica_of: str | None, in_cluster: str | None, multi_az: bool
) -> None:
    """Refuse options that a read replica or a member takes over from its source or its cluster.

    Raises:
        UsageError: such an option is given, or ``--storage`` is missing.
    """
    login = options.master_user or options.master_secret or options.dbname or options.engine_version
    storage = options.storage or options.storage_type or options.iops
    network = options.subnet_group or options.security_group or options.port
    if replica_of and in_cluster:
        raise UsageError("--replica-of and --in-cluster cannot be used together", hint="choose one")
    if (replica_of or in_cluster) and login:
        raise UsageError("login, database and version are the source's", hint="omit those options")
    if in_cluster and (storage or multi_az or network):
        raise UsageError("storage and network are the cluster's", hint="omit those options")
    if replica_of and options.storage:
        raise UsageError("a read replica's storage is its source's", hint="omit --storage")
    if not replica_of and not in_cluster and options.storage is None:
        raise UsageError("--storage is missing", hint="add --storage GIB")


def _reboot(instance: Instance, *, failover: bool, with_pending: bool, timeout_seconds: float) -> Plan:
    """Plan to reboot an instance, with or without failover.

    Raises:
        Refused: queued modifications may take effect at the reboot.
    """
    from rdsrepl.aws import pending_modifications, reboots
    from rdsrepl.parameters import rollout
    from rdsrepl.plan import Plan
    from rdsrepl.postgres import verification

    instance_id = instance.instance_id
    notes = pending_modifications.check_reboot(rollout.queued_on(instance), allowed=with_pending)
    if failover:
        stay = "static parameters that are pending a reboot stay pending after a failover; to apply them"
        notes = (*notes, f"{stay}: {command('instance reboot {}', instance_id)}")
    steps = reboots.steps(
        instance_id, timeout_seconds=timeout_seconds, failover=failover, server=verification.ServerProbe()
    )
    title = f"fail over instance {instance_id}" if failover else f"reboot instance {instance_id}"
    return Plan(title, steps, ("its connections are closed", *notes))


def _part_of(instance: Instance) -> str:
    if instance.cluster_id is not None:
        return f"cluster {instance.cluster_id}"
    if instance.replica_of is not None:
        return f"read replica of {instance.replica_of}"
    return "standalone"
