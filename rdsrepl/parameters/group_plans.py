"""Plan what ``param-group`` does: create, set, reset, attach and delete a parameter group.

The functions read from the RDS API and return a ``Plan``; they change nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rdsrepl.aws import engines, instances, parameter_groups, reboots
from rdsrepl.aws.instances import Instance
from rdsrepl.aws.parameter_groups import ApplyMethod, NewValue, Parameter, ParameterGroup
from rdsrepl.aws.resources import ResourceKind
from rdsrepl.config import Aws, Target
from rdsrepl.errors import BadValue, InUse, NotFound, UsageError
from rdsrepl.parameters import attachments, instance_classes, rollout, sizing, value_units
from rdsrepl.parameters.allowed_values import is_allowed
from rdsrepl.parameters.attachments import AttachTarget
from rdsrepl.parameters.rollout import MemoryChanges
from rdsrepl.plan import ParameterChange, Plan
from rdsrepl.postgres import verification
from rdsrepl.text.commands import command
from rdsrepl.text.suggestions import did_you_mean
from rdsrepl.units import with_unit

_ENGINE_DEFAULT: Final = "(engine's)"


@dataclass(frozen=True, slots=True)
class NewGroup:
    """What a new parameter group is for.

    Attributes:
        target: the cluster or instance that it is made for; None where only the family is known.
        family, kind: None where ``target`` or ``copy_from`` decides.
        slots, subscriptions, replicas: how many are planned; for ``replicas``, None takes the number of ``target``.
        instance_class: the class to evaluate formulas for; None takes the class of ``target``.
        overrides: values that the user chose, by parameter.
        copy_from: a custom group whose other settings are kept.
    """

    name: str
    description: str
    target: AttachTarget | None
    family: str | None
    kind: ResourceKind | None
    slots: int
    subscriptions: int
    replicas: int | None
    instance_class: str | None
    overrides: Mapping[str, str]
    copy_from: str | None


@dataclass(frozen=True, slots=True)
class CreatePlan:
    """A plan that creates a group, the group's kind, and notes for the user."""

    plan: Plan
    kind: ResourceKind
    notes: tuple[str, ...]


def create(aws: Aws, new: NewGroup) -> CreatePlan:
    """Plan to create a group with every parameter that logical replication needs, or to complete an existing one.

    Raises:
        UsageError: neither the family nor the kind can be determined.
        BadValue: options contradict each other, or a value is not possible.
        NotFound: the group to copy is not there.
    """
    source = None if new.copy_from is None else _custom_group(aws, new.copy_from, new.kind)
    family = _family(aws, new, source)
    kind = _kind(new, source, family)
    parameters = parameter_groups.defaults(aws, kind, family)
    if source is not None:
        parameters |= parameter_groups.parameters(aws, kind, source.name)
    new = replace(new, overrides={name: _in_unit(parameters, name, value) for name, value in new.overrides.items()})
    sized = sizing.propose(_sizing_request(new, kind, family), _sizing_defaults(parameters))
    values = [
        NewValue(proposal.name, proposal.value, proposal.apply_method)
        for proposal in sized.proposals
        if proposal.value is not None
    ]
    existing, existing_values = _existing(aws, kind, new.name)
    plan = parameter_groups.create(
        ParameterGroup(new.name, kind, family, new.description, ""),
        values,
        existing=existing,
        existing_values=existing_values,
        copy_from=None if source is None else source.name,
    )
    warnings = plan.warnings
    if existing is not None and plan:
        users = attachments.users_of(aws, existing)
        used = f", and {', '.join(users)} uses it" if users else ""
        warnings = (*warnings, f"group {new.name} exists already{used}: the plan sets what differs")
    changes = tuple(_proposed_change(proposal, parameters[proposal.name]) for proposal in sized.proposals)
    return CreatePlan(replace(plan, changes=changes, warnings=warnings), kind, sized.notes)


def set_values(aws: Aws, name: str, kind: ResourceKind | None, values: Mapping[str, str]) -> Plan:
    """Plan to set parameters of a group; one that has its value already is left out.

    Raises:
        NotFound: there is no such group.
        BadValue: a parameter is unknown or not modifiable, or a value is not allowed.
    """
    parameter_groups.refuse_default(name)
    group = parameter_groups.find(aws, name, kind)
    parameters = parameter_groups.parameters(aws, group.kind, group.name)
    new = [_checked_value(parameters, key, value, group) for key, value in values.items()]
    differing = [value for value in new if parameters[value.name].value != value.value]
    plan = parameter_groups.set_values(group.kind, group.name, differing)
    changes = [_change(parameters[value.name], value.value) for value in differing]
    return _with_changes(plan, changes, attachments.users_of(aws, group))


def reset(aws: Aws, name: str, kind: ResourceKind | None, names: Collection[str], *, everything: bool) -> Plan:
    """Plan to reset parameters of a group, or all that were set in it, to the engine's defaults.

    Raises:
        NotFound: there is no such group.
        BadValue: a parameter is unknown.
    """
    parameter_groups.refuse_default(name)
    group = parameter_groups.find(aws, name, kind)
    parameters = parameter_groups.parameters(aws, group.kind, group.name)
    for parameter in names:
        _known_parameter(parameters, parameter, group)
    chosen = [row for row in parameters.values() if row.source == "user" and (everything or row.name in names)]
    resets = [(row.name, _apply_method(row)) for row in chosen]
    plan = parameter_groups.reset(group.kind, group.name, resets, everything=everything)
    defaults = parameter_groups.defaults(aws, group.kind, group.family) if chosen else {}
    changes = [_change(row, _default_value(defaults, row.name)) for row in chosen]
    return _with_changes(plan, changes, attachments.users_of(aws, group))


def delete(aws: Aws, name: str, kind: ResourceKind | None) -> Plan:
    """Plan to delete a group.

    Raises:
        NotFound: there is no such group.
        InUse: it is attached to a cluster or an instance.
    """
    parameter_groups.refuse_default(name)
    group = parameter_groups.find(aws, name, kind)
    users = attachments.users_of(aws, group)
    if users:
        option, user = users[0].split(" ", 1)
        other = command(f"param-group attach {{}} --{option} {{}}", f"default.{group.family}", user)
        raise InUse(
            f"parameter group {group.name} is attached to {', '.join(users)}",
            hint=f"attach another to it first: {other}",
        )
    return parameter_groups.delete(group.kind, group.name)


def attach(
    target: Target,
    name: str,
    attach_to: AttachTarget,
    *,
    reboot: bool,
    with_replicas: bool,
    verify: bool,
    with_pending: bool,
    timeout_seconds: float,
) -> Plan:
    """Plan to attach a group to a cluster or an instance, and with ``reboot`` to reboot the servers that need it.

    Args:
        target: the database; its servers are asked over SQL whether values are pending a restart.
        name: the group.
        attach_to: the cluster or instance.
        reboot: whether servers that need it are rebooted, one at a time.
        with_replicas: whether the instance's read replicas get the group as well.
        verify: whether the servers are asked over SQL, before and after.
        with_pending: whether the reboots may apply queued modifications.
        timeout_seconds: of each wait.

    Raises:
        NotFound: there is no such group.
        Refused: the group is for another family, or no reboot order is safe.
    """
    aws = target.aws
    group = parameter_groups.find(aws, name, attach_to.kind)
    rollout.require_group_fits(group.family, engines.family(aws, *attach_to.engine), attach_to.description)
    wanted = attachments.values(aws, group.kind, group.name)
    before = attachments.evaluate_all(attachments.values(aws, attach_to.kind, attach_to.group), attach_to.hardware)
    after = attachments.evaluate_all(wanted, attach_to.hardware)
    changes = rollout.memory_changes(before, after)
    cluster, instance = attach_to.cluster, attach_to.instance
    replicas = _read_replicas(aws, instance, wanted) if cluster is None and instance is not None else {}
    chosen = [replica for replica, _ in replicas.values()] if with_replicas else []
    members = instances.of_cluster(aws, cluster.cluster_id) if cluster is not None else (instance, *chosen)
    rebooted = [one for one in members if one is not None]
    servers = {one.instance_id: _server(one, wanted) for one in rebooted} if verify else {}
    # A server reports pending values of the attached group only; before that, RDS's status is the only source.
    waiting = [
        one.instance_id
        for one in rebooted
        if reboot and verify and attach_to.group == group.name and reboots.needed(target, one, servers[one.instance_id])
    ]
    options = rollout.RolloutOptions(reboot, timeout_seconds, waiting, servers, with_pending)
    if cluster is not None:
        plan = rollout.attach_to_cluster(cluster, group.name, changes, options, members=rebooted)
    else:
        assert instance is not None
        plan = rollout.attach_to_instance(instance, group.name, changes, replicas, options, with_replicas=with_replicas)
    if plan and reboot and verify:
        plan = replace(plan, steps=(*plan.steps, verification.settings(_expected_settings(after))))
    return plan


def _custom_group(aws: Aws, name: str, kind: ResourceKind | None) -> ParameterGroup:
    group = parameter_groups.find(aws, name, kind)
    if group.is_default:
        raise UsageError(f"{name} is a default group: it has no settings of your own to keep", hint="omit --copy-from")
    return group


def _family(aws: Aws, new: NewGroup, source: ParameterGroup | None) -> str:
    """Return the family of a new group: of its target, of the option, or of the group that is copied."""
    if new.target is not None:
        family = engines.family(aws, *new.target.engine)
        if new.family not in (None, family):
            raise BadValue(
                f"{new.target.description} needs a group for {family}, not {new.family}", hint="omit --family"
            )
    elif new.family is not None:
        family = engines.check_family(aws, new.family)
    elif source is not None:
        family = source.family
    else:
        raise UsageError(
            "the group's family is not known", hint="add --cluster ID, --instance ID or --family postgres16"
        )
    if source is not None and source.family != family:
        raise BadValue(
            f"{source.name} is for {source.family}, not {family}", hint="AWS copies a group within its family only"
        )
    return family


def _kind(new: NewGroup, source: ParameterGroup | None, family: str) -> ResourceKind:
    if new.kind is not None:
        if new.target is not None and new.kind != new.target.kind:
            raise UsageError(
                f"the replication parameters of {new.target.description} are in its {new.target.kind} parameter group",
                hint="omit --kind",
            )
        return new.kind
    if new.target is not None:
        return new.target.kind
    if source is not None:
        return source.kind
    if engines.is_aurora(family):
        return "cluster"
    raise UsageError(
        f"{family} has groups of both kinds",
        hint="add --kind cluster for a Multi-AZ DB cluster, --kind instance for an instance, or --cluster ID or "
        "--instance ID",
    )


def _existing(aws: Aws, kind: ResourceKind, name: str) -> tuple[ParameterGroup | None, Mapping[str, str]]:
    try:
        group = parameter_groups.get(aws, kind, name)
    except NotFound:
        return None, {}
    return group, attachments.values(aws, kind, name)


def _sizing_request(new: NewGroup, kind: ResourceKind, family: str) -> sizing.SizingRequest:
    engine: sizing.Engine = "aurora-postgresql" if engines.is_aurora(family) else "postgres"
    topology = engines.topology(engine, in_cluster=kind == "cluster")
    hardware = new.target.hardware if new.target is not None else None
    if new.instance_class is not None:
        hardware = instance_classes.hardware(new.instance_class)
        if hardware is None:
            raise BadValue(f"{new.instance_class!r} is not a known instance class", hint="for example db.r6g.large")
    replicas = new.replicas
    if replicas is None and new.target is not None and new.target.cluster is None and new.target.instance is not None:
        replicas = len(new.target.instance.replicas)
    return sizing.SizingRequest(
        engine=engine,
        topology=topology,
        major=int("".join(c for c in family if c.isdigit())),
        slots=new.slots,
        subscriptions=new.subscriptions,
        replicas=replicas or 0,
        hardware=hardware,
        storage_gib=new.target.storage_gib if new.target is not None else None,
        overrides=new.overrides,
    )


def _sizing_defaults(parameters: Mapping[str, Parameter]) -> dict[str, sizing.Default]:
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


def _proposed_change(proposal: sizing.Proposal, row: Parameter) -> ParameterChange:
    default = proposal.default
    if default is None and proposal.default_evaluated is not None:
        default = str(proposal.default_evaluated)
    elif default is not None and proposal.default_evaluated is not None and default != str(proposal.default_evaluated):
        default = f"{default} = {proposal.default_evaluated}"
    return ParameterChange(
        proposal.name, default, proposal.value, proposal.apply_type, proposal.apply_method, proposal.reason, _unit(row)
    )


def _change(row: Parameter, value: str) -> ParameterChange:
    return ParameterChange(row.name, row.value, value, row.apply_type, _apply_method(row), row.description, _unit(row))


def _unit(row: Parameter) -> str | None:
    return value_units.unit_of(row.name, row.description)


def _in_unit(parameters: Mapping[str, Parameter], name: str, value: str) -> str:
    """Return a value in the unit of its parameter; unchanged where the parameter is not known."""
    row = parameters.get(name)
    return value if row is None else value_units.convert(name, value, _unit(row), whole=row.data_type != "float")


def _with_changes(plan: Plan, changes: Sequence[ParameterChange], users: Sequence[str]) -> Plan:
    warnings = list(plan.warnings)
    static = [change.name for change in changes if change.apply_type == "static"]
    dynamic = [change.name for change in changes if change.apply_type != "static"]
    for names, when in ((static, f"after a reboot of {', '.join(users)}"), (dynamic, f"at once on {', '.join(users)}")):
        if users and names:
            warnings.append(f"{', '.join(names)} {'takes' if len(names) == 1 else 'take'} effect {when}")
    return replace(plan, changes=tuple(changes), warnings=tuple(warnings))


def _default_value(defaults: Mapping[str, Parameter], name: str) -> str:
    return (defaults[name].value if name in defaults else None) or _ENGINE_DEFAULT


def _known_parameter(parameters: Mapping[str, Parameter], name: str, group: ParameterGroup) -> Parameter:
    if name in parameters:
        return parameters[name]
    raise BadValue(
        f"{group.family} has no parameter {name!r} in its {group.kind} groups",
        hint=did_you_mean(name, parameters, otherwise="list them: rdsrepl param-group show NAME --all"),
    )


def _checked_value(parameters: Mapping[str, Parameter], name: str, value: str, group: ParameterGroup) -> NewValue:
    row = _known_parameter(parameters, name, group)
    if not row.is_modifiable:
        hint = "wal_level follows rds.logical_replication=1" if name == "wal_level" else "AWS sets it itself"
        raise BadValue(f"{name} cannot be changed in a parameter group", hint=hint)
    value = _in_unit(parameters, name, value)
    if not is_allowed(value, row.allowed_values, row.data_type):
        raise BadValue(
            f"{name} cannot be {with_unit(value, _unit(row))!r}", hint=f"allowed: {row.allowed_values or row.data_type}"
        )
    return NewValue(name, value, _apply_method(row))


def _apply_method(row: Parameter) -> ApplyMethod:
    return "pending-reboot" if row.apply_type == "static" else "immediate"


def _read_replicas(
    aws: Aws, instance: Instance, wanted: Mapping[str, str]
) -> dict[str, tuple[Instance, MemoryChanges]]:
    """Return an instance's read replicas, each with what the wanted values would change there."""
    replicas = {}
    for replica in attachments.replicas(aws, instance):
        hardware = instance_classes.hardware(replica.instance_class)
        before = attachments.evaluate_all(attachments.values(aws, "instance", replica.parameter_group), hardware)
        after = attachments.evaluate_all(wanted, hardware)
        replicas[replica.instance_id] = (replica, rollout.memory_changes(before, after))
    return replicas


def _server(instance: Instance, wanted: Mapping[str, str]) -> verification.ServerProbe:
    """Return the settings to verify on one server, with formulas evaluated for its instance class."""
    after = attachments.evaluate_all(wanted, instance_classes.hardware(instance.instance_class))
    return verification.ServerProbe(_expected_settings(after))


def _expected_settings(after: Mapping[str, int | None]) -> dict[str, str]:
    """Return the ``pg_settings`` values that the group's values lead to."""
    expected = {"wal_level": "logical" if after.get("rds.logical_replication") == 1 else "replica"}
    for name in ("max_replication_slots", "max_wal_senders"):
        if (number := after.get(name)) is not None:
            expected[name] = str(number)
    return expected
