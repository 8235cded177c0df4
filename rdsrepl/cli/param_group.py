"""``rdsrepl param-group``: DB parameter groups and DB cluster parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rdsrepl.cli import rds_options
from rdsrepl.cli.command_classes import (
    AwsListCommand,
    AwsReadCommand,
    AwsWriteCommand,
    ListCommand,
    ServerWriteCommand,
    WriteCommand,
)
from rdsrepl.cli.completion import complete_param_group
from rdsrepl.cli.confirm import confirm_and_apply
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.cli.lists import print_list
from rdsrepl.cli.option_bundles import with_bundles
from rdsrepl.cli.options import flag_option
from rdsrepl.cli.targets import aws_target, database_target
from rdsrepl.errors import BadValue, UsageError
from rdsrepl.render import Column, Listing, emit, facts, listing, stacked
from rdsrepl.text.commands import command
from rdsrepl.units import with_unit

if TYPE_CHECKING:
    from rdsrepl.aws.resources import ResourceKind
    from rdsrepl.parameters.diff import Difference

app = typer.Typer(no_args_is_help=True, help="Parameter groups: turn logical replication on, and size its parameters.")

_SIZE_PANEL: Final = "Sizing"
# Parameters that `show` prints besides those that were set or are sized.
_SHOWN: Final = (
    "max_replication_slots",
    "max_wal_senders",
    "max_logical_replication_workers",
    "max_worker_processes",
    "max_connections",
)


class GroupKind(StrEnum):
    """The values of ``--kind``."""

    cluster = "cluster"
    instance = "instance"


_Kind = Annotated[
    GroupKind | None,
    typer.Option(
        "--kind", help="Choose cluster (Multi-AZ DB cluster, Aurora) or instance.", show_default="the group's"
    ),
]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The parameter group.", autocompletion=complete_param_group)]


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group as ``list`` prints it."""

    name: str
    kind: str
    family: str
    description: str
    used_by: tuple[str, ...]


_GROUP_COLUMNS: Final = (
    Column("NAME", lambda row: row.name, "name", kind="name"),
    Column("KIND", lambda row: row.kind, "kind"),
    Column("FAMILY", lambda row: row.family, "family", priority=2),
    Column("USED BY", lambda row: row.used_by, "used_by", kind="prose"),
    Column("DESCRIPTION", lambda row: row.description, "description", priority=3, kind="prose"),
)
_PARAMETER_COLUMNS: Final = (
    Column("PARAMETER", lambda row: row.name),
    Column("VALUE", lambda row: _with_unit(row.name, row.value, row.description), kind="name"),
    Column("SET BY", lambda row: row.source, priority=2),
    Column("TYPE", lambda row: row.apply_type, priority=3),
    Column("ALLOWED", lambda row: _short(row.allowed_values), priority=4, kind="name"),
)


@app.command("list", cls=AwsListCommand)
def list_(
    ctx: typer.Context,
    kind: Annotated[GroupKind | None, typer.Option("--kind", help="List groups of this kind only.")] = None,
    defaults: Annotated[bool, flag_option("--defaults", help="List the default groups as well.")] = False,
) -> None:
    """List the PostgreSQL parameter groups of the region, and which clusters and instances use each.

    Example: rdsrepl param-group list
    """
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments

    def read() -> list[GroupRow]:
        aws = aws_target(ctx).aws
        users = attachments.users(aws)
        return [
            GroupRow(
                group.name, group.kind, group.family, group.description, tuple(users.get((group.kind, group.name), ()))
            )
            for group in parameter_groups.ls(aws, kind.value if kind else None)
            if defaults or not group.is_default
        ]

    empty = "no custom parameter groups; create one: rdsrepl param-group create NAME --cluster ID"
    print_list(ctx, Listing(GroupRow, _GROUP_COLUMNS, empty), read)


@app.command(cls=AwsReadCommand)
def show(
    ctx: typer.Context,
    name: _Name,
    kind: _Kind = None,
    every: Annotated[bool, flag_option("--all", help="Show every parameter, set or not.")] = False,
) -> None:
    """Show a group: the parameters that were set, those that logical replication needs, and what uses the group.

    Example: rdsrepl param-group show orders-logical
    """
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments, sizing

    aws = aws_target(ctx).aws
    group = parameter_groups.find(aws, name, _kind(kind))
    wanted = {*sizing.SIZED_PARAMETERS, *_SHOWN}
    rows = [
        parameter
        for parameter in parameter_groups.parameters(aws, group.kind, group.name).values()
        if every or parameter.source == "user" or parameter.name in wanted
    ]
    users = attachments.users_of(aws, group)
    value = {"group": group, "used_by": users, "parameters": rows}
    emit(
        value,
        global_options(ctx).output,
        lambda: stacked(
            facts(
                [
                    ("group", group.name),
                    ("kind, family", f"{group.kind}, {group.family}"),
                    ("description", group.description),
                    ("used by", users),
                ]
            ),
            "",
            listing(rows, _PARAMETER_COLUMNS, empty="no parameter is set"),
        ),
    )


@dataclass(frozen=True, slots=True)
class SizeOptions:
    """The options of ``create`` that size the parameters."""

    slots: Annotated[
        int, typer.Option(min=0, metavar="N", help="Plan this many logical slots.", rich_help_panel=_SIZE_PANEL)
    ] = 1
    subscriptions: Annotated[
        int, typer.Option(min=0, metavar="N", help="Plan this many subscriptions.", rich_help_panel=_SIZE_PANEL)
    ] = 0
    replicas: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Plan this many read replicas.",
            rich_help_panel=_SIZE_PANEL,
            show_default="those of --instance, else 0",
        ),
    ] = None
    instance_class: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Evaluate formulas for this instance class; default: that of --cluster or --instance.",
            rich_help_panel=_SIZE_PANEL,
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="K=V",
            help="Set this parameter as well; may be repeated.",
            rich_help_panel=_SIZE_PANEL,
            show_default=False,
        ),
    ] = None


@app.command(cls=ServerWriteCommand)
@with_bundles
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new group's name.")],
    size: SizeOptions,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILY",
            help="Create it for this family: postgres16, ...; default: that of --cluster or --instance.",
        ),
    ] = None,
    kind: _Kind = None,
    copy_from: Annotated[
        str | None,
        typer.Option(
            "--copy-from",
            metavar="GROUP",
            help="Keep the other settings of this custom group.",
            autocompletion=complete_param_group,
        ),
    ] = None,
    description: Annotated[
        str, typer.Option(metavar="TEXT", help="Describe the group with this text.")
    ] = "Logical replication, created by rdsrepl",
) -> None:
    """Create a group with every parameter that logical replication needs; the plan shows the reason for each value.

    A default is never lowered. The group is not attached: param-group attach does that.

    Example: rdsrepl param-group create orders-logical --cluster orders --slots 4
    """
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments, group_plans

    name = parameter_groups.check_name(name)
    overrides = _pairs(size.set_ or [])
    target, options = aws_target(ctx), global_options(ctx)
    # The cluster of the current target is used only where no option says what the group is for.
    is_named = options.cluster or options.instance or (family is None and kind is None)
    new = group_plans.NewGroup(
        name=name,
        description=description,
        target=attachments.attach_target(target) if is_named else None,
        family=family,
        kind=_kind(kind),
        slots=size.slots,
        subscriptions=size.subscriptions,
        replicas=size.replicas,
        instance_class=size.instance_class,
        overrides=overrides,
        copy_from=copy_from,
    )
    created = group_plans.create(target.aws, new)
    for line in created.notes:
        note(ctx, line)
    if confirm_and_apply(ctx, created.plan, target=target):
        option, identifier = (created.kind, "ID") if new.target is None else (new.target.kind, new.target.identifier)
        note(ctx, f"next: {command(f'param-group attach {{}} --{option} {{}} --reboot', name, identifier)}")


@app.command("set", cls=AwsWriteCommand)
def set_values(
    ctx: typer.Context,
    name: _Name,
    pairs: Annotated[list[str], typer.Argument(metavar="K=V", help="The parameters and their values.")],
    kind: _Kind = None,
) -> None:
    """Set parameters in a group, and read them back.

    A dynamic parameter takes effect at once where the group is attached; a static one after a reboot.

    Example: rdsrepl param-group set orders-logical max_slot_wal_keep_size=50GB
    """
    from rdsrepl.parameters import group_plans

    target = aws_target(ctx)
    plan = group_plans.set_values(target.aws, name, _kind(kind), _pairs(pairs))
    confirm_and_apply(ctx, plan, target=target)


@app.command(cls=AwsWriteCommand)
def reset(
    ctx: typer.Context,
    name: _Name,
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="PARAMETER", help="The parameters; or --all.", show_default=False)
    ] = None,
    every: Annotated[bool, flag_option("--all", help="Reset all that were set.")] = False,
    kind: _Kind = None,
) -> None:
    """Reset parameters of a group to the engine's defaults.

    Example: rdsrepl param-group reset orders-logical max_slot_wal_keep_size
    """
    from rdsrepl.parameters import group_plans

    if bool(parameters) == every:
        raise UsageError("name parameters or add --all", hint="rdsrepl param-group reset NAME PARAMETER...")
    target = aws_target(ctx)
    plan = group_plans.reset(target.aws, name, _kind(kind), parameters or (), everything=every)
    confirm_and_apply(ctx, plan, target=target)


@app.command(cls=WriteCommand)
def attach(
    ctx: typer.Context,
    name: _Name,
    reboot: Annotated[bool, flag_option("--reboot", help="Reboot the servers that need it, one at a time.")] = False,
    with_replicas: Annotated[
        bool, flag_option("--with-replicas", help="Attach it to the instance's read replicas as well.")
    ] = False,
    no_proof: Annotated[bool, flag_option("--no-proof", help="Do not verify the result over SQL.")] = False,
    with_pending: rds_options.WithPending = False,
    timeout: rds_options.Timeout = 1800.0,
) -> None:
    """Attach a group to a cluster (--cluster) or an instance (--instance), and with --reboot apply it.

    Standbys are rebooted before their primary when shared memory must grow, after it when it shrinks. The result is
    verified over SQL.

    Example: rdsrepl param-group attach orders-logical --cluster orders --reboot
    """
    from rdsrepl.parameters import attachments, group_plans

    target = database_target(ctx)
    attach_to = attachments.attach_target(target)
    if attach_to is None:
        raise UsageError("no cluster or instance is given", hint="add --cluster ID or --instance ID")
    if with_replicas and attach_to.cluster is not None:
        raise UsageError("--with-replicas is for instances; all members share their cluster's group", hint="omit it")
    plan = group_plans.attach(
        target,
        name,
        attach_to,
        reboot=reboot,
        with_replicas=with_replicas,
        verify=not no_proof,
        with_pending=with_pending,
        timeout_seconds=timeout,
    )
    confirm_and_apply(ctx, plan, target=target)


@app.command(cls=AwsWriteCommand)
def delete(ctx: typer.Context, name: _Name, kind: _Kind = None) -> None:
    """Delete a group that no cluster or instance uses.

    Example: rdsrepl param-group delete orders-logical
    """
    from rdsrepl.parameters import group_plans

    target = aws_target(ctx)
    confirm_and_apply(ctx, group_plans.delete(target.aws, name, _kind(kind)), target=target)


@app.command(cls=ListCommand)
def diff(
    ctx: typer.Context,
    name: _Name,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="OTHER",
            help="Compare with this group; default: the family's defaults.",
            autocompletion=complete_param_group,
        ),
    ] = None,
    live: Annotated[
        bool, flag_option("--live", help="Compare with the running server (--cluster, --instance).")
    ] = False,
    kind: _Kind = None,
) -> None:
    """Show where a group differs from another group, from the defaults, or from the running server.

    The exit code is 0 whether there are differences or not.

    Example: rdsrepl param-group diff orders-logical --live --cluster orders
    """
    from rdsrepl.parameters import diff as parameter_diff

    if live and other is not None:
        raise UsageError("another group and --live cannot be used together", hint="choose one")
    heading = "SERVER" if live else (other or "defaults").upper()
    columns = (
        Column("PARAMETER", lambda row: row.name, "name"),
        Column(name.upper(), lambda row: _with_unit(row.name, row.left), "left", kind="name"),
        Column(heading, lambda row: _with_unit(row.name, row.right), "right", kind="name"),
        Column("TYPE", lambda row: row.apply_type, "apply_type", priority=3),
        Column("NOTE", lambda row: row.note, "note", priority=2, kind="prose"),
    )
    shown = Listing(parameter_diff.Difference, columns, "no differences")
    print_list(ctx, shown, lambda: _differences(ctx, name, other, _kind(kind), live=live))


def _differences(
    ctx: typer.Context, name: str, other: str | None, kind: ResourceKind | None, *, live: bool
) -> Sequence[Difference]:
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments, diff

    target = database_target(ctx)
    aws = target.aws
    attached = attachments.attach_target(target) if live else None
    group = parameter_groups.find(aws, name, kind or (attached.kind if attached else None))
    left = parameter_groups.parameters(aws, group.kind, group.name)
    if not live:
        return diff.groups(
            left,
            parameter_groups.parameters(aws, group.kind, other)
            if other
            else parameter_groups.defaults(aws, group.kind, group.family),
        )
    from rdsrepl.postgres import connection, settings

    with connection.open(target) as conn:
        running = settings.ls(conn, list(left))
    pending = attached is not None and attached.pending_reboot
    return diff.server(left, running, attached.hardware if attached else None, pending_reboot=pending)


def _with_unit(name: str, value: str | None, description: str = "") -> str | None:
    """Return a value for people: ``10240 (10GB)``."""
    from rdsrepl.parameters import value_units

    return None if value is None else with_unit(value, value_units.unit_of(name, description))


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= 40 else text[:39] + "…"


def _kind(kind: GroupKind | None) -> ResourceKind | None:
    return None if kind is None else kind.value


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise BadValue(f"{word!r} is not PARAMETER=VALUE", hint="for example max_wal_senders=40")
        if key.strip() in pairs:
            raise BadValue(f"{key.strip()} is given twice", hint="name each parameter once")
        pairs[key.strip()] = value.strip()
    return pairs
