"""The RDS operations on DB parameter groups and DB cluster parameter groups."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rdsrepl.sandbox.api import engine_catalog, formulas, paging
from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.parameter_catalog import EngineParameter
from rdsrepl.sandbox.api.parameter_groups import ApplyMethod, GroupValue, StoredGroup, aws_noun
from rdsrepl.sandbox.api.records import check_identifier
from rdsrepl.sandbox.api.service import Service, operation
from rdsrepl.sandbox.api.types import ApplyType, Parameters, ResourceKind, Result

MAX_PARAMETERS: Final = 20
_SOURCES: Final = ("user", "system", "engine-default")
# Whether a formula is valid does not depend on the class, so it is evaluated for this one.
_EXAMPLE_CLASS: Final = "db.r6g.large"


@operation("CreateDBParameterGroup", kind="instance")
@operation("CreateDBClusterParameterGroup", kind="cluster")
def create(service: Service, p: Parameters, kind: ResourceKind) -> Result:
    """Create a group."""
    name, family = p[f"{aws_noun(kind)}Name"].lower(), p["DBParameterGroupFamily"].lower()
    group = service.groups.create(StoredGroup(name, kind, family, p["Description"], {}))
    return {aws_noun(kind): _group_result(service, group)}


@operation("CopyDBParameterGroup", kind="instance")
@operation("CopyDBClusterParameterGroup", kind="cluster")
def copy(service: Service, p: Parameters, kind: ResourceKind) -> Result:
    """Create a copy of a group."""
    noun = aws_noun(kind)
    wanted: str = p[f"Source{noun}Identifier"]
    name = wanted.rpartition(":")[2] if wanted.startswith("arn:") else wanted
    check_identifier(f"{noun}Name", name, 255)
    source = service.groups.get(kind, name)
    target: str = p[f"Target{noun}Identifier"]
    description: str = p[f"Target{noun}Description"]
    group = StoredGroup(target.lower(), kind, source.family, description, source.changes)
    return {noun: _group_result(service, service.groups.create(group))}


@operation("ModifyDBParameterGroup", kind="instance")
@operation("ModifyDBClusterParameterGroup", kind="cluster")
def modify(service: Service, p: Parameters, kind: ResourceKind) -> Result:
    """Modify parameters of a group."""
    with service.store.lock:
        group = _get_editable(service, kind, p)
        wanted: Sequence[Mapping[str, Any]] = _check_count(p["Parameters"])
        if not wanted:
            raise fault("MissingParameter", "The request must contain the parameter Parameters.")
        changes = {one["ParameterName"]: _change(group, one) for one in _check_unique(wanted)}
        changed = service.groups.modify(group, changes)
    return _apply(service, group, changed)


@operation("ResetDBParameterGroup", kind="instance")
@operation("ResetDBClusterParameterGroup", kind="cluster")
def reset(service: Service, p: Parameters, kind: ResourceKind) -> Result:
    """Reset parameters of a group, or all, to their defaults."""
    wanted: Sequence[Mapping[str, Any]] = _check_count(p.get("Parameters", ()))
    everything = p.get("ResetAllParameters", not wanted)
    if everything == bool(wanted):
        raise fault(
            "InvalidParameterCombination", "Specify either ResetAllParameters or the Parameters to reset, not both"
        )
    with service.store.lock:
        group = _get_editable(service, kind, p)
        methods: dict[str, ApplyMethod]
        if everything:
            methods = {
                parameter: "immediate" if group.defaults[parameter].apply_type == "dynamic" else "pending-reboot"
                for parameter in group.changes
            }
        else:
            methods = {one["ParameterName"]: _method(_parameter(group, one), one) for one in _check_unique(wanted)}
        changed = service.groups.reset(group, methods)
    return _apply(service, group, changed)


@operation("DeleteDBParameterGroup", kind="instance")
@operation("DeleteDBClusterParameterGroup", kind="cluster")
def delete(service: Service, p: Parameters, kind: ResourceKind) -> Result:
    """Delete a group that is not in use."""
    with service.store.lock:
        group = _get(service, kind, p)
        if group.is_default:
            message = f"Default {aws_noun(kind)} cannot be deleted: {group.name}"
            raise fault("InvalidDBParameterGroupStateFault", message)
        if service.controller is not None and service.controller.users(kind, group.name):
            raise fault(
                "InvalidDBParameterGroupStateFault",
                f"One or more database {kind}s are still members of this parameter group {group.name}, "
                "so the group cannot be deleted",
            )
        service.groups.delete(group)
    return {}


@operation("DescribeDBParameterGroups", kind="instance")
@operation("DescribeDBClusterParameterGroups", kind="cluster")
def describe(service: Service, p: Parameters, kind: ResourceKind) -> Result:
    """Return groups."""
    groups = [_get(service, kind, p)] if p.get(f"{aws_noun(kind)}Name") else service.groups.all(kind)
    paging.matches_filters(p, {})
    page, marker = paging.page({group.name: _group_result(service, group) for group in groups}, p)
    return {f"{aws_noun(kind)}s": page, "Marker": marker}


@operation("DescribeDBParameters", kind="instance")
@operation("DescribeDBClusterParameters", kind="cluster")
def describe_parameters(service: Service, p: Parameters, kind: ResourceKind) -> Result:
    """Return the parameters of a group."""
    group = _get(service, kind, p)
    wanted = p.get("Source")
    if wanted not in (None, *_SOURCES):
        raise fault("InvalidParameterValue", f"Invalid parameter source: {wanted}")
    chosen: dict[str, Result] = {}
    for parameter in group.defaults.values():
        change = group.changes.get(parameter.name)
        # On RDS a value that equals the default has the source of the default, also after a user set it.
        source = "user" if change is not None and change.value != parameter.value else parameter.source
        if wanted in (None, source) and paging.matches_filters(p, {"parameter-name": parameter.name}):
            described = _parameter_result(service, group.family, parameter)
            described["Source"] = source
            # RDS shows this for unchanged parameters, also for dynamic ones.
            described["ApplyMethod"] = change.method if change is not None else "pending-reboot"
            if change is not None:
                described["ParameterValue"] = change.value
            chosen[parameter.name] = described
    page, marker = paging.page(chosen, p)
    return {"Parameters": page, "Marker": marker}


@operation("DescribeEngineDefaultParameters", kind="instance")
@operation("DescribeEngineDefaultClusterParameters", kind="cluster")
def describe_defaults(service: Service, p: Parameters, kind: ResourceKind) -> Result:
    """Return the default parameters of a family."""
    family: str = p["DBParameterGroupFamily"]
    chosen = {
        parameter.name: _parameter_result(service, family, parameter)
        for parameter in engine_catalog.defaults(family, kind).values()
        if paging.matches_filters(p, {"parameter-name": parameter.name})
    }
    page, marker = paging.page(chosen, p)
    return {"EngineDefaults": {"DBParameterGroupFamily": family, "Parameters": page, "Marker": marker}}


def _apply(service: Service, group: StoredGroup, changed: Mapping[str, ApplyType]) -> Result:
    """Apply changed parameters to the servers; without the lock, because reloads take time."""
    if changed and service.controller is not None:
        service.controller.group_changed(group.kind, group.name, changed)
    return {f"{aws_noun(group.kind)}Name": group.name}


def _get(service: Service, kind: ResourceKind, p: Parameters) -> StoredGroup:
    return service.groups.get(kind, p[f"{aws_noun(kind)}Name"])


def _group_result(service: Service, group: StoredGroup) -> Result:
    noun = aws_noun(group.kind)
    return {
        f"{noun}Name": group.name,
        "DBParameterGroupFamily": group.family,
        "Description": group.description,
        f"{noun}Arn": _arn(service, group),
    }


def _parameter_result(service: Service, family: str, parameter: EngineParameter) -> Result:
    return {
        "ParameterName": parameter.name,
        "ParameterValue": _printed(service, parameter.value),
        "Description": parameter.description,
        "Source": parameter.source,
        "ApplyType": parameter.apply_type,
        "DataType": parameter.data_type,
        "AllowedValues": parameter.allowed_values,
        "IsModifiable": parameter.is_modifiable,
        "MinimumEngineVersion": parameter.minimum_engine_version,
        "SupportedEngineModes": ["provisioned"] if family.startswith("aurora") else None,
    }


def _printed(service: Service, value: str | None) -> str | None:
    """Return a default value as RDS prints it; the switch changes the spelling of formulas."""
    if value is None or not service.consistency.switches.printed_formulas or not formulas.is_formula(value):
        return value
    if "(" not in value:
        return f"${value}" if value.startswith("{") else value
    plain = re.sub(r"\$?\{([^{}]*)\}", r"\1", value)
    return plain.replace("(DBInstanceVCPU", "($DBInstanceVCPU")


def _get_editable(service: Service, kind: ResourceKind, p: Parameters) -> StoredGroup:
    group = _get(service, kind, p)
    if group.is_default:
        raise fault("InvalidParameterValue", "Cannot modify a default parameter group.")
    return group


def _check_count(wanted: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if len(wanted) > MAX_PARAMETERS:
        message = f"Only {MAX_PARAMETERS} parameters can be changed in one request; it has {len(wanted)}"
        raise fault("InvalidParameterValue", message)
    return wanted


def _check_unique(wanted: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    seen: set[str] = set()
    for one in wanted:
        name = one.get("ParameterName")
        if not name:
            raise fault("MissingParameter", "The request must contain the parameter ParameterName.")
        if name in seen:
            raise fault("InvalidParameterValue", f"The parameter {name} is given more than once")
        seen.add(name)
        yield one


def _parameter(group: StoredGroup, one: Mapping[str, Any]) -> EngineParameter:
    name = one["ParameterName"]
    parameter = group.defaults.get(name)
    if parameter is None:
        raise fault("InvalidParameterValue", f"Could not find parameter with name: {name}")
    if not parameter.is_modifiable:
        raise fault("InvalidParameterValue", f"The parameter {name} cannot be modified.")
    return parameter


def _method(parameter: EngineParameter, one: Mapping[str, Any]) -> ApplyMethod:
    method = one.get("ApplyMethod")
    if method == "immediate":
        if parameter.apply_type == "static":
            message = "cannot use immediate apply method for static parameter"
            raise fault("InvalidParameterCombination", message)
        return "immediate"
    if method == "pending-reboot":
        return "pending-reboot"
    raise fault("InvalidParameterValue", f"Invalid apply method for {parameter.name}: {method}")


def _change(group: StoredGroup, one: Mapping[str, Any]) -> GroupValue:
    parameter = _parameter(group, one)
    value = one.get("ParameterValue")
    if value is None:
        raise fault("MissingParameter", "The request must contain the parameter ParameterValue.")
    if not _is_valid(parameter, value):
        allowed = f" allowed values are: {parameter.allowed_values}" if parameter.allowed_values else ""
        message = f"Invalid parameter value: {value} for: {parameter.name}{allowed}"
        raise fault("InvalidParameterValue", message)
    return GroupValue(value, _method(parameter, one))


def _is_valid(parameter: EngineParameter, value: str) -> bool:
    if parameter.data_type not in ("integer", "float") or not formulas.is_formula(value):
        return parameter.allows(value)
    some = engine_catalog.instance_class(_EXAMPLE_CLASS)
    try:
        formulas.evaluate(value, some.vcpu, some.memory_bytes)
    except ValueError:
        return False
    return True


def _arn(service: Service, group: StoredGroup) -> str:
    return service.arn("cluster-pg" if group.kind == "cluster" else "pg", group.name)
