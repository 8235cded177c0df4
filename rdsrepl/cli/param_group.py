"""``rdsrepl param-group``: DB parameter groups and DB cluster parameter groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rdsrepl.cli import rds_options
from rdsrepl.cli.completion import complete_param_group
from rdsrepl.cli.confirm import confirm_and_apply
from rdsrepl.cli.console import note
from rdsrepl.cli.context import global_options
from rdsrepl.cli.options import ReadCommand, WriteCommand
from rdsrepl.cli.targets import aws_target, database_target
from rdsrepl.errors import BadValue, InUse, NotFound, UsageError
from rdsrepl.render import emit, facts, listing, stacked
from rdsrepl.text.commands import command

if TYPE_CHECKING:
    from rdsrepl.aws.instances import Instance
    from rdsrepl.aws.parameter_groups import Kind, NewValue, Parameter, ParameterGroup
    from rdsrepl.config import Aws
    from rdsrepl.parameters import sizing
    from rdsrepl.parameters.attachments import AttachTarget
    from rdsrepl.parameters.rollout import MemoryChanges
    from rdsrepl.plan import ParameterChange, Plan, Wait
    from rdsrepl.postgres import verification

app = typer.Typer(
    no_args_is_help=True, help="Parameter groups: what turns logical replication on, and how much room it has."
)

_SIZE_PANEL: Final = "What it must serve"
# What `show` prints beside what was set and what has a rule.
_SHOWN: Final = (
    "max_replication_slots",
    "max_wal_senders",
    "max_logical_replication_workers",
    "max_worker_processes",
    "max_connections",
)


class GroupKind(StrEnum):
    """What ``--kind`` takes."""

    cluster = "cluster"
    instance = "instance"


_Kind = Annotated[
    GroupKind | None,
    typer.Option("--kind", help="cluster (Multi-AZ DB clusters, Aurora) or instance.", show_default="as found"),
]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The group.", autocompletion=complete_param_group)]


@dataclass(frozen=True, slots=True)
class Listed:
    """A group as ``list`` prints it."""

    name: str
    kind: str
    family: str
    description: str
    used_by: tuple[str, ...]


@app.command("list", cls=ReadCommand)
def list_(
    ctx: typer.Context,
    kind: _Kind = None,
    defaults: Annotated[bool, typer.Option("--defaults", help="AWS's own as well.", show_default=False)] = False,
) -> None:
    """List the PostgreSQL parameter groups of the region, and who uses each.

    Example: rdsrepl param-group list
    """
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments

    aws = aws_target(ctx).aws
    users = attachments.users(aws)
    groups = [
        group for group in parameter_groups.ls(aws, kind.value if kind else None) if defaults or not group.is_default
    ]
    rows = [
        Listed(group.name, group.kind, group.family, group.description, tuple(users.get((group.kind, group.name), ())))
        for group in groups
    ]
    emit(
        rows,
        global_options(ctx).output,
        lambda: listing(
            rows,
            [
                ("NAME", lambda row: row.name),
                ("KIND", lambda row: row.kind),
                ("FAMILY", lambda row: row.family),
                ("USED BY", lambda row: row.used_by),
                ("DESCRIPTION", lambda row: row.description),
            ],
            empty="no parameter groups of your own; make one: rdsrepl param-group create NAME --cluster ID",
        ),
    )


@app.command(cls=ReadCommand)
def show(
    ctx: typer.Context,
    name: _Name,
    kind: _Kind = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every parameter, also those nobody set.", show_default=False)
    ] = False,
) -> None:
    """Show a group: what was set in it, what logical replication needs, who uses it.

    Example: rdsrepl param-group show orders-logical
    """
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments, sizing

    aws = aws_target(ctx).aws
    group = parameter_groups.find(aws, name, _given(kind))
    wanted = {*sizing.SIZED_PARAMETERS, *_SHOWN}
    rows = [
        parameter
        for parameter in parameter_groups.parameters(aws, group.kind, group.name)
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
            listing(
                rows,
                [
                    ("PARAMETER", lambda row: row.name),
                    ("VALUE", lambda row: row.value),
                    ("SET BY", lambda row: row.source),
                    ("TYPE", lambda row: row.apply_type),
                    ("ALLOWED", lambda row: _short(row.allowed_values)),
                ],
                empty="nothing is set in it",
            ),
        ),
    )


@app.command(cls=WriteCommand)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new group's name.")],
    family: Annotated[
        str | None,
        typer.Option(metavar="FAMILY", help="postgres16, aurora-postgresql16, …; seen from --cluster or --instance."),
    ] = None,
    kind: _Kind = None,
    slots: Annotated[
        int, typer.Option(min=0, metavar="N", help="Logical slots on it.", rich_help_panel=_SIZE_PANEL)
    ] = 1,
    subscriptions: Annotated[
        int, typer.Option(min=0, metavar="N", help="Subscriptions on it.", rich_help_panel=_SIZE_PANEL)
    ] = 0,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Read replicas of it.",
            rich_help_panel=_SIZE_PANEL,
            show_default="as found with --instance, else 0",
        ),
    ] = None,
    instance_class: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Instance class, for formulas; seen from --cluster or --instance.",
            rich_help_panel=_SIZE_PANEL,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="K=V",
            help="A parameter of your own choice; again for more.",
            rich_help_panel=_SIZE_PANEL,
            show_default=False,
        ),
    ] = None,
    copy_from: Annotated[
        str | None,
        typer.Option(
            "--copy-from",
            metavar="GROUP",
            help="Keep that custom group's other settings.",
            autocompletion=complete_param_group,
        ),
    ] = None,
    description: Annotated[
        str, typer.Option(metavar="TEXT", help="The group's description.")
    ] = "Logical replication, made by rdsrepl",
) -> None:
    """Make a group in which logical replication is on and has room: every parameter it needs, sized, with the reason.

    A default is never lowered. Nothing is attached: that is param-group attach.

    Example: rdsrepl param-group create orders-logical --cluster orders --slots 4
    """
    from rdsrepl.aws import engines, parameter_groups
    from rdsrepl.parameters import attachments, sizing

    name = parameter_groups.check_name(name)
    overrides = _pairs(set_ or [])
    aws = aws_target(ctx).aws
    # A target's own cluster is only meant where nothing else says what the group is for.
    named = global_options(ctx).cluster or global_options(ctx).instance
    place = attachments.attach_target(aws) if named or (family is None and kind is None) else None
    if place is None and family is None and copy_from is None:
        raise UsageError(
            "which family is the group for?", hint="--cluster ID, --instance ID or --family postgres16 says it"
        )
    source = None
    if copy_from is not None:
        source = parameter_groups.find(aws, copy_from, _given(kind))
        if source.is_default:
            raise UsageError(
                f"{copy_from} is a default group: there is nothing of yours in it to keep", hint="omit --copy-from"
            )
    if place is not None:
        found = engines.family(aws, *place.engine)
        if family is not None and family != found:
            raise BadValue(f"{place.description} needs a group for {found}, not {family}", hint="omit --family")
        family = found
    elif family is None:
        assert source is not None
        family = source.family
    else:
        family = engines.check_family(aws, family)
    if source is not None and source.family != family:
        raise BadValue(
            f"{source.name} is for {source.family}, not {family}", hint="AWS copies a group within its family only"
        )
    chosen: Kind = _kind_for(kind, place, source, family)
    defaults = parameter_groups.defaults(aws, chosen, family)
    if source is not None:
        custom = parameter_groups.parameters(aws, chosen, source.name)
        defaults |= {parameter.name: parameter for parameter in custom}
    demand = _demand(place, chosen, family, slots, subscriptions, replicas, instance_class, overrides)
    sized = sizing.propose(demand, _as_defaults(defaults))
    values = [
        parameter_groups.NewValue(proposal.name, proposal.value, proposal.apply_method)
        for proposal in sized.proposals
        if proposal.value is not None
    ]
    existing, existing_values = _existing(aws, chosen, name)
    plan = parameter_groups.create(
        parameter_groups.ParameterGroup(name, chosen, family, description, ""),
        values,
        existing=existing,
        existing_values=existing_values,
        copy_from=None if source is None else source.name,
    )
    warnings = []
    if existing is not None and plan:
        users = attachments.users_of(aws, existing)
        used = f", and {', '.join(users)} uses it" if users else ""
        warnings.append(f"group {name} exists already{used}: what differs is set in it")
    plan = replace(plan, changes=tuple(map(_change, sized.proposals)), warnings=(*plan.warnings, *warnings))
    for line in sized.notes:
        note(ctx, line)
    if confirm_and_apply(ctx, plan, target=aws_target(ctx)):
        option, identifier = (place.kind, place.identifier) if place is not None else (chosen, "ID")
        note(ctx, f"next: {command(f'param-group attach {{}} --{option} {{}} --reboot', name, identifier)}")


@app.command("set", cls=WriteCommand)
def set_values(
    ctx: typer.Context,
    name: _Name,
    pairs: Annotated[list[str], typer.Argument(metavar="K=V...", help="Parameters and their values.")],
    kind: _Kind = None,
) -> None:
    """Set parameters in a group, and read them back.

    A dynamic one holds at once where the group is in force; a static one waits for a reboot.

    Example: rdsrepl param-group set orders-logical max_slot_wal_keep_size=51200
    """
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments

    values = _pairs(pairs)
    parameter_groups.refuse_default(name)
    aws = aws_target(ctx).aws
    group = parameter_groups.find(aws, name, _given(kind))
    known = {row.name: row for row in parameter_groups.parameters(aws, group.kind, group.name)}
    new = [_checked(known, key, value, group) for key, value in values.items()]
    plan = parameter_groups.set_values(
        group.kind, group.name, [value for value in new if known[value.name].value != value.value]
    )
    changes = [
        _plain_change(known[value.name], value.value)
        for value in new
        if known[value.name].value != value.value
    ]  # fmt: skip
    confirm_and_apply(ctx, _with_changes(plan, changes, attachments.users_of(aws, group)), target=aws_target(ctx))


@app.command(cls=WriteCommand)
def reset(
    ctx: typer.Context,
    name: _Name,
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="[PARAMETER]...", help="Which; or --all.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that were set.", show_default=False)] = False,
    kind: _Kind = None,
) -> None:
    """Give parameters of a group back to the engine's defaults.

    Example: rdsrepl param-group reset orders-logical max_slot_wal_keep_size
    """
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments

    if bool(parameters) == every:
        raise UsageError("name parameters, or --all", hint="rdsrepl param-group reset NAME PARAMETER...")
    parameter_groups.refuse_default(name)
    aws = aws_target(ctx).aws
    group = parameter_groups.find(aws, name, _given(kind))
    known = {row.name: row for row in parameter_groups.parameters(aws, group.kind, group.name)}
    for parameter in parameters or []:
        _known(known, parameter, group)
    chosen = [row for row in known.values() if row.source == "user" and (every or row.name in (parameters or []))]
    resets = [(row.name, _method(row)) for row in chosen]
    plan = parameter_groups.reset(group.kind, group.name, resets, everything=every)
    defaults = parameter_groups.defaults(aws, group.kind, group.family) if chosen else {}
    changes = [
        replace(
            _plain_change(row, defaults[row.name].value or "(engine's)" if row.name in defaults else "(engine's)"),
            default=row.value,
        )
        for row in chosen
    ]
    confirm_and_apply(ctx, _with_changes(plan, changes, attachments.users_of(aws, group)), target=aws_target(ctx))


@app.command(cls=WriteCommand)
def attach(
    ctx: typer.Context,
    name: _Name,
    reboot: Annotated[
        bool,
        typer.Option("--reboot", help="Reboot what it is attached to, one server at a time.", show_default=False),
    ] = False,
    with_replicas: Annotated[
        bool,
        typer.Option("--with-replicas", help="The instance's read replicas get it, too.", show_default=False),
    ] = False,
    no_proof: Annotated[
        bool,
        typer.Option("--no-proof", help="Do not connect to the database to prove the result.", show_default=False),
    ] = False,
    with_pending: rds_options.WithPending = False,
    timeout: rds_options.Timeout = 1800.0,
) -> None:
    """Attach a group to a cluster (--cluster) or an instance (--instance); with --reboot it comes into force.

    Standbys are rebooted before their primary when room in shared memory grows, after it when it shrinks. The result
    is proven over SQL.

    Example: rdsrepl param-group attach orders-logical --cluster orders --reboot
    """
    from rdsrepl.aws import engines, instances, parameter_groups, reboots
    from rdsrepl.parameters import attachments, rollout

    target = database_target(ctx)
    aws = target.aws
    place = attachments.attach_target(aws)
    if place is None:
        raise UsageError("attach it to what?", hint="--cluster ID or --instance ID says it")
    group = parameter_groups.find(aws, name, place.kind)
    rollout.require_group_fits(group.family, engines.family(aws, *place.engine), place.description)
    before = attachments.evaluate_all(attachments.values(aws, place.kind, place.group), place.hardware)
    wanted = attachments.values(aws, group.kind, group.name)
    after = attachments.evaluate_all(wanted, place.hardware)
    changes = rollout.memory_changes(before, after)
    followers = _followers(aws, place.instance, wanted) if place.kind == "instance" and place.instance else {}
    chosen = [replica for replica, _ in followers.values()] if with_replicas else []
    members = instances.of_cluster(aws, place.cluster.cluster_id) if place.cluster else (place.instance, *chosen)
    servers = {one.instance_id: _server(one, wanted) for one in members if one is not None and not no_proof}
    # While the group is not attached, its parameters' status is all there is to say.
    attached = [one for one in members if one is not None and place.group == group.name]
    waiting = [
        one.instance_id
        for one in attached
        if reboot and one.instance_id in servers and reboots.needed(target, one, servers[one.instance_id])
    ]
    if place.cluster is not None:
        if with_replicas:
            raise UsageError("--with-replicas is for instances; a cluster's group is all its members'", hint="omit it")
        plan = rollout.attach_to_cluster(
            place.cluster,
            group.name,
            changes,
            reboot=reboot,
            timeout_seconds=timeout,
            members=[one for one in members if one is not None],
            waiting=waiting,
            servers=servers,
            with_pending=with_pending,
        )
    else:
        assert place.instance is not None
        plan = rollout.attach_to_instance(
            place.instance,
            group.name,
            changes,
            followers,
            reboot=reboot,
            with_replicas=with_replicas,
            timeout_seconds=timeout,
            waiting=waiting,
            servers=servers,
            with_pending=with_pending,
        )
    if plan and reboot and not no_proof:
        plan = replace(plan, steps=(*plan.steps, _proof(after)))
    confirm_and_apply(ctx, plan, target=target)


@app.command(cls=WriteCommand)
def delete(ctx: typer.Context, name: _Name, kind: _Kind = None) -> None:
    """Delete a group that nobody uses.

    Example: rdsrepl param-group delete orders-logical
    """
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments

    parameter_groups.refuse_default(name)
    aws = aws_target(ctx).aws
    group = parameter_groups.find(aws, name, _given(kind))
    users = attachments.users_of(aws, group)
    if users:
        option, user = users[0].split(" ", 1)
        other = command(f"param-group attach {{}} --{option} {{}}", f"default.{group.family}", user)
        raise InUse(
            f"parameter group {group.name} is attached to {', '.join(users)}",
            hint=f"attach another to it first: {other}",
        )
    confirm_and_apply(ctx, parameter_groups.delete(group.kind, group.name), target=aws_target(ctx))


@app.command(cls=ReadCommand)
def diff(
    ctx: typer.Context,
    name: _Name,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[OTHER]",
            help="Another group; default: the family's defaults.",
            autocompletion=complete_param_group,
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Against what the running server (--cluster, --instance) says.", show_default=False
        ),
    ] = False,
    kind: _Kind = None,
) -> None:
    """Show where a group differs from another, from the defaults, or from what the server really runs with.

    Exit 0 whether it does or not.

    Example: rdsrepl param-group diff orders-logical --live --cluster orders
    """
    from rdsrepl.aws import parameter_groups
    from rdsrepl.parameters import attachments
    from rdsrepl.parameters import diff as parameter_diff

    if live and other is not None:
        raise UsageError("another group and --live exclude each other", hint="choose one")
    target = database_target(ctx)
    aws = target.aws
    place = attachments.attach_target(aws) if live else None
    group = parameter_groups.find(aws, name, _given(kind) or (place.kind if place else None))
    left = {row.name: row for row in parameter_groups.parameters(aws, group.kind, group.name)}
    if live:
        from rdsrepl.postgres import connection, settings

        with connection.open(target) as conn:
            running = settings.ls(conn, list(left))
        rows = parameter_diff.server(
            left,
            running,
            place.hardware if place else None,
            pending_reboot=place is not None and place.pending_reboot,
        )
        heading = "SERVER"
    else:
        right = (
            {row.name: row for row in parameter_groups.parameters(aws, group.kind, other)}
            if other
            else parameter_groups.defaults(aws, group.kind, group.family)
        )
        rows = parameter_diff.groups(left, right)
        heading = (other or f"{group.family} defaults").upper()
    emit(
        rows,
        global_options(ctx).output,
        lambda: listing(
            rows,
            [
                ("PARAMETER", lambda row: row.name),
                (group.name.upper(), lambda row: row.left),
                (heading, lambda row: row.right),
                ("TYPE", lambda row: row.apply_type),
                ("NOTE", lambda row: row.note),
            ],
            empty="no difference",
        ),
    )


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= 40 else text[:39] + "…"


def _given(kind: GroupKind | None) -> Kind | None:
    return None if kind is None else kind.value


def _kind_for(kind: GroupKind | None, place: AttachTarget | None, source: ParameterGroup | None, family: str) -> Kind:
    found = place.kind if place is not None else source.kind if source is not None else None
    if found is None and family.startswith("aurora"):
        found = "cluster"
    if kind is None and found is None:
        raise UsageError(
            f"{family} has groups of both kinds",
            hint="--kind cluster for a Multi-AZ DB cluster, --kind instance for an instance; --cluster or --instance "
            "ID says it, too",
        )
    if kind is not None and place is not None and kind.value != place.kind:
        raise UsageError(
            f"the replication parameters of {place.description} stand in its {place.kind} parameter group",
            hint="omit --kind",
        )
    return kind.value if kind is not None else found  # type: ignore[return-value]


def _existing(aws: Aws, kind: Kind, name: str) -> tuple[ParameterGroup | None, Mapping[str, str]]:
    from rdsrepl.aws import parameter_groups

    try:
        group = parameter_groups.get(aws, kind, name)
    except NotFound:
        return None, {}
    rows = parameter_groups.parameters(aws, kind, name)
    return group, {row.name: row.value for row in rows if row.value is not None}


def _demand(
    place: AttachTarget | None,
    kind: Kind,
    family: str,
    slots: int,
    subscriptions: int,
    replicas: int | None,
    instance_class: str | None,
    overrides: Mapping[str, str],
) -> sizing.SizingRequest:
    from rdsrepl.parameters import instance_classes, sizing

    engine: sizing.Engine = "aurora-postgresql" if family.startswith("aurora") else "postgres"
    topology: sizing.Topology = (
        "aurora" if engine == "aurora-postgresql" else "multi_az_cluster" if kind == "cluster" else "instance"
    )
    hardware = place.hardware if place is not None else None
    if instance_class is not None:
        hardware = instance_classes.hardware(instance_class)
        if hardware is None:
            raise BadValue(f"{instance_class!r} is no instance class that is known", hint="for example db.r6g.large")
    if replicas is None and place is not None and place.kind == "instance" and place.instance is not None:
        replicas = len(place.instance.replicas)
    return sizing.SizingRequest(
        engine=engine,
        topology=topology,
        major=int("".join(c for c in family if c.isdigit())),
        slots=slots,
        subscriptions=subscriptions,
        replicas=replicas or 0,
        hardware=hardware,
        storage_gib=place.storage_gib if place is not None else None,
        overrides=overrides,
    )


def _as_defaults(parameters: Mapping[str, Parameter]) -> dict[str, sizing.Default]:
    from rdsrepl.parameters import sizing

    return {
        name: sizing.Default(
            row.value,
            "static" if row.apply_type == "static" else "dynamic",
            row.allowed_values,
            row.is_modifiable,
            row.data_type or None,
        )
        for name, row in parameters.items()
    }


def _change(proposal: sizing.Proposal) -> ParameterChange:
    from rdsrepl.plan import ParameterChange

    default = proposal.default
    if default is None and proposal.default_evaluated is not None:
        default = str(proposal.default_evaluated)
    elif default is not None and proposal.default_evaluated is not None and default != str(proposal.default_evaluated):
        default = f"{default} = {proposal.default_evaluated}"
    return ParameterChange(
        proposal.name, default, proposal.value, proposal.apply_type, proposal.apply_method, proposal.reason
    )


def _plain_change(row: Parameter, value: str) -> ParameterChange:
    from rdsrepl.plan import ParameterChange

    return ParameterChange(row.name, row.value, value, row.apply_type, _method(row), row.description[:60])


def _with_changes(plan: Plan, changes: Sequence[ParameterChange], users: Sequence[str]) -> Plan:
    warnings = list(plan.warnings)
    static = [change.name for change in changes if change.apply_type == "static"]
    if users and static:
        warnings.append(f"{', '.join(static)} will hold after a reboot of {', '.join(users)}")
    if users and len(static) < len(changes):
        warnings.append(f"the rest holds at once on {', '.join(users)}")
    return replace(plan, changes=tuple(changes), warnings=tuple(warnings))


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise BadValue(f"{word!r} is no parameter and value", hint="write max_wal_senders=40")
        if key.strip() in pairs:
            raise BadValue(f"{key.strip()} is given twice", hint="name each parameter once")
        pairs[key.strip()] = value.strip()
    return pairs


def _known(known: Mapping[str, Parameter], name: str, group: ParameterGroup) -> Parameter:
    if name in known:
        return known[name]
    import difflib

    near = difflib.get_close_matches(name, known, n=3)
    raise BadValue(
        f"{group.family} has no parameter {name!r} in its {group.kind} groups",
        hint=f"did you mean {' or '.join(near)}?" if near else "rdsrepl param-group show NAME --all lists them",
    )


def _checked(known: Mapping[str, Parameter], name: str, value: str, group: ParameterGroup) -> NewValue:
    from rdsrepl.aws.parameter_groups import NewValue
    from rdsrepl.parameters.allowed_values import is_allowed

    row = _known(known, name, group)
    if not row.is_modifiable:
        hint = "wal_level follows rds.logical_replication=1" if name == "wal_level" else "AWS sets it itself"
        raise BadValue(f"{name} cannot be changed in a parameter group", hint=hint)
    if not is_allowed(value, row.allowed_values, row.data_type):
        raise BadValue(f"{name} cannot be {value!r}", hint=f"allowed: {row.allowed_values or row.data_type}")
    return NewValue(name, value, _method(row))


def _method(row: Parameter) -> Any:
    return "pending-reboot" if row.apply_type == "static" else "immediate"


def _followers(aws: Aws, instance: Instance, wanted: Mapping[str, str]) -> dict[str, tuple[Instance, MemoryChanges]]:
    """Return an instance's read replicas, each with what the wanted values would change there."""
    from rdsrepl.parameters import attachments, instance_classes, rollout

    found = {}
    for replica in attachments.replicas(aws, instance):
        hardware = instance_classes.hardware(replica.instance_class)
        before = attachments.evaluate_all(attachments.values(aws, "instance", replica.parameter_group), hardware)
        after = attachments.evaluate_all(wanted, hardware)
        found[replica.instance_id] = (replica, rollout.memory_changes(before, after))
    return found


def _proof(after: Mapping[str, int | None]) -> Wait:
    from rdsrepl.postgres import verification

    return verification.settings(_expected(after))


def _server(instance: Instance, wanted: Mapping[str, str]) -> verification.Server:
    """Return what one server is asked, whose instance class the group's formulas are evaluated for."""
    from rdsrepl.parameters import attachments, instance_classes
    from rdsrepl.postgres import verification

    after = attachments.evaluate_all(wanted, instance_classes.hardware(instance.instance_class))
    return verification.Server(_expected(after))


def _expected(after: Mapping[str, int | None]) -> dict[str, str]:
    """Return what ``pg_settings`` is to say, by name."""
    expected = {"wal_level": "logical" if after.get("rds.logical_replication") == 1 else "replica"}
    for name in ("max_replication_slots", "max_wal_senders"):
        if (number := after.get(name)) is not None:
            expected[name] = str(number)
    return expected
