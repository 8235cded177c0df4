"""DB parameter groups and DB cluster parameter groups, whose API calls have the same shape and different names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, TypeVar

from rdsrepl.aws import identifiers, session
from rdsrepl.aws.resources import ResourceKind
from rdsrepl.config import Aws, Target
from rdsrepl.errors import AlreadyExists, BadValue, NotFound, Refused
from rdsrepl.plan import AwsCall, Condition, Plan, Step, Wait
from rdsrepl.text.counts import counted

_T = TypeVar("_T")
ApplyMethod = Literal["immediate", "pending-reboot"]

KINDS: Final[tuple[ResourceKind, ...]] = ("cluster", "instance")
# The maximum of ModifyDBParameterGroup in one request.
MODIFY_AT_ONCE: Final = 20
_READ_BACK_SECONDS: Final = 120.0
_API_NOUNS: Final[Mapping[ResourceKind, str]] = {"cluster": "DBClusterParameterGroup", "instance": "DBParameterGroup"}
_PARAMETERS: Final[Mapping[ResourceKind, str]] = {"cluster": "DBClusterParameters", "instance": "DBParameters"}


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """A parameter group, without its parameters."""

    name: str
    kind: ResourceKind
    family: str
    description: str
    arn: str

    @property
    def is_default(self) -> bool:
        """Whether it is a default group of AWS, which is not modifiable."""
        return self.name.startswith("default.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a group, or of the engine defaults of a family.

    Attributes:
        value: as text, in the unit of ``pg_settings``, or a formula; None if the engine default applies.
        apply_type: ``static`` (needs a reboot) or ``dynamic``. The ``apply_method`` of a default group has no meaning.
        source: ``user``, ``engine-default`` or ``system``; not ``user`` if the value that was set is the default.
        allowed_values: ``0,1`` or ``5-262143``; None if every value is allowed.
    """

    name: str
    value: str | None
    apply_type: str
    apply_method: str
    data_type: str
    allowed_values: str | None
    is_modifiable: bool
    source: str
    description: str
    minimum_engine_version: str | None


@dataclass(frozen=True, slots=True)
class NewValue:
    """A value to set; the apply method depends on the apply type of the parameter."""

    name: str
    value: str
    apply_method: ApplyMethod


def ls(aws: Aws, kind: ResourceKind | None = None) -> tuple[ParameterGroup, ...]:
    """Return the PostgreSQL parameter groups of the region, of one kind or both.

    Raises:
        Error: AWS refused.
    """
    groups: list[ParameterGroup] = []
    for one in KINDS if kind is None else (kind,):
        rows = session.pages(aws, "rds", f"Describe{_API_NOUNS[one]}s", f"{_API_NOUNS[one]}s")
        groups += [_group(one, row) for row in rows]
    return tuple(group for group in groups if is_postgres(group.family))


def get(aws: Aws, kind: ResourceKind, name: str) -> ParameterGroup:
    """Return one parameter group.

    Raises:
        NotFound: it does not exist in the region.
    """
    answer = session.call(aws, "rds", f"Describe{_API_NOUNS[kind]}s", {f"{_API_NOUNS[kind]}Name": name})
    return _group(kind, answer[f"{_API_NOUNS[kind]}s"][0])


def find(aws: Aws, name: str, kind: ResourceKind | None = None) -> ParameterGroup:
    """Return the parameter group with this name, of either kind.

    Raises:
        NotFound: it does not exist.
        BadValue: a group of each kind has this name.
    """
    groups = []
    for one in KINDS if kind is None else (kind,):
        try:
            groups.append(get(aws, one, name))
        except NotFound as exc:
            missing = exc
    if not groups:
        missing.message = f"parameter group {name} does not exist"
        missing.hint = "list the groups: rdsrepl param-group list (choose another region with --region)"
        raise missing
    if len(groups) > 1 and not groups[0].is_default:
        raise BadValue(
            f"a cluster and an instance parameter group have the name {name}", hint="choose one: --kind cluster"
        )
    return groups[0]


def parameters(aws: Aws, kind: ResourceKind, name: str) -> dict[str, Parameter]:
    """Return all parameters of a group by name.

    A filter by source would miss some: AWS reports a parameter that was set to its default with the source of the
    default.

    Args:
        aws: the identity.
        kind: the kind of the group.
        name: the name of the group.

    Raises:
        NotFound: the group does not exist.
    """
    request = {f"{_API_NOUNS[kind]}Name": name}
    operation = f"Describe{_PARAMETERS[kind]}"
    rows = session.pages(aws, "rds", operation, "Parameters", request)
    return {parameter.name: parameter for parameter in map(_parameter, rows)}


def defaults(aws: Aws, kind: ResourceKind, family: str) -> dict[str, Parameter]:
    """Return the engine defaults of a family by parameter name (DescribeEngineDefaultParameters).

    Raises:
        Error: the family does not exist.
    """
    operation = "DescribeEngineDefault" + ("ClusterParameters" if kind == "cluster" else "Parameters")
    request = {"DBParameterGroupFamily": family}
    rows = session.pages(aws, "rds", operation, "EngineDefaults.Parameters", request)
    return {parameter.name: parameter for parameter in map(_parameter, rows)}


def is_postgres(family: str) -> bool:
    """Return whether a family is one of PostgreSQL, on RDS or Aurora."""
    return re.fullmatch(r"(aurora-)?postgres(ql)?\d+", family) is not None


def check_name(name: str) -> str:
    """Return NAME in lower case, as AWS stores it, if it is valid for a new group (CreateDBParameterGroup).

    Raises:
        BadValue: it is not valid.
    """
    lower = identifiers.check(name, "a parameter group", longest=255)
    if lower.startswith("default-") or lower == "default":
        raise BadValue(f"{name!r} looks like the name of a default group of AWS", hint="choose another name")
    return lower


def refuse_default(name: str) -> None:
    """Refuse to change a default group of AWS.

    Raises:
        Refused: it is a default group.
    """
    if name.startswith("default."):
        raise Refused(
            f"{name} is a default group, which is not modifiable",
            hint="create a custom group: rdsrepl param-group create NAME --cluster ID, "
            "then rdsrepl param-group attach NAME --cluster ID",
        )


def create(
    group: ParameterGroup,
    values: Sequence[NewValue],
    *,
    existing: ParameterGroup | None,
    existing_values: Mapping[str, str] | None = None,
    copy_from: str | None = None,
) -> Plan:
    """Plan to create a group, set values, and read them back; an existing group is only completed.

    Args:
        group: the group to create; its ARN is not used.
        values: the values to set.
        existing: the existing group with this name, if any.
        existing_values: the values that are set in it.
        copy_from: a custom group to copy the other values from.

    Raises:
        AlreadyExists: a group with this name exists for another family.
    """
    if existing is not None and existing.family != group.family:
        raise AlreadyExists(
            f"parameter group {group.name} already exists for family {existing.family}",
            hint=f"choose another name for {group.family}",
        )
    steps: list[Step] = []
    noun = _API_NOUNS[group.kind]
    missing = [value for value in values if (existing_values or {}).get(value.name) != value.value]
    if existing is None and copy_from is None:
        request = {
            f"{noun}Name": group.name,
            "DBParameterGroupFamily": group.family,
            "Description": group.description,
        }
        steps.append(
            AwsCall(
                f"create {group.kind} parameter group {group.name}", "rds", f"Create{noun}", request, effect="create"
            )
        )
    elif existing is None:
        request = {
            f"Source{noun}Identifier": str(copy_from),
            f"Target{noun}Identifier": group.name,
            f"Target{noun}Description": group.description,
        }
        summary = f"copy {group.kind} parameter group {copy_from} to {group.name}"
        steps.append(AwsCall(summary, "rds", f"Copy{noun}", request, effect="create"))
    steps += _modify(group.kind, group.name, missing)
    if steps:
        steps.append(_read_back(group.kind, group.name, values))
    return Plan(
        f"create parameter group {group.name}",
        tuple(steps),
        unchanged=f"parameter group {group.name} already has these values",
    )


def set_values(kind: ResourceKind, name: str, values: Sequence[NewValue]) -> Plan:
    """Plan to set values in a group and read them back.

    Raises:
        Refused: it is a default group.
    """
    refuse_default(name)
    steps = (*_modify(kind, name, values), *([_read_back(kind, name, values)] if values else []))
    return Plan(f"set parameters of group {name}", steps, unchanged=f"parameter group {name} already has these values")


def reset(kind: ResourceKind, name: str, resets: Sequence[tuple[str, ApplyMethod]], *, everything: bool) -> Plan:
    """Plan to reset parameters to the engine defaults.

    Args:
        kind: the kind of the group.
        name: the name of the group.
        resets: parameter names and the apply method of each.
        everything: reset all parameters of the group in one call.

    Raises:
        Refused: it is a default group.
    """
    refuse_default(name)
    noun = _API_NOUNS[kind]
    steps: list[Step] = []
    if everything and resets:
        request: dict[str, Any] = {f"{noun}Name": name, "ResetAllParameters": True}
        steps.append(AwsCall(f"reset all parameters of group {name}", "rds", f"Reset{noun}", request, effect="change"))
    else:
        for chunk in _chunks(resets):
            items = [{"ParameterName": parameter, "ApplyMethod": method} for parameter, method in chunk]
            request = {f"{noun}Name": name, "Parameters": items}
            names = ", ".join(parameter for parameter, _ in chunk)
            steps.append(AwsCall(f"reset {names} in group {name}", "rds", f"Reset{noun}", request, effect="change"))
    if steps:
        reset_names = frozenset(parameter for parameter, _ in resets)
        steps.append(
            Wait(
                f"read group {name} back",
                partial(_none_set, kind=kind, name=name, names=reset_names),
                _READ_BACK_SECONDS,
            )
        )
    return Plan(
        f"reset parameters of group {name}", tuple(steps), unchanged="these parameters are not set in this group"
    )


def delete(kind: ResourceKind, name: str) -> Plan:
    """Plan to delete an unused group.

    Raises:
        Refused: it is a default group.
    """
    refuse_default(name)
    request = {f"{_API_NOUNS[kind]}Name": name}
    call = AwsCall(f"delete {kind} parameter group {name}", "rds", f"Delete{_API_NOUNS[kind]}", request, effect="drop")
    return Plan(f"delete parameter group {name}", (call,))


def _modify(kind: ResourceKind, name: str, values: Sequence[NewValue]) -> list[Step]:
    noun = _API_NOUNS[kind]
    steps: list[Step] = []
    for chunk in _chunks(values):
        items = [
            {"ParameterName": value.name, "ParameterValue": value.value, "ApplyMethod": value.apply_method}
            for value in chunk
        ]
        names = ", ".join(value.name for value in chunk)
        request = {f"{noun}Name": name, "Parameters": items}
        steps.append(AwsCall(f"set {names} in group {name}", "rds", f"Modify{noun}", request, effect="change"))
    return steps


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), MODIFY_AT_ONCE):
        yield items[start : start + MODIFY_AT_ONCE]


def _read_back(kind: ResourceKind, name: str, values: Sequence[NewValue]) -> Wait:
    wanted = {value.name: value.value for value in values}
    return Wait(f"read group {name} back", partial(_all_set, kind=kind, name=name, wanted=wanted), _READ_BACK_SECONDS)


def _all_set(target: Target, *, kind: ResourceKind, name: str, wanted: Mapping[str, str]) -> Condition:
    current = parameters(target.aws, kind, name)
    differ = [key for key, value in wanted.items() if key not in current or current[key].value != value]
    state = f"not visible yet: {', '.join(differ)}" if differ else "all values as set"
    return Condition(not differ, state, facts={"read back": f"{counted(len(wanted), 'parameter')} as set"})


def _none_set(target: Target, *, kind: ResourceKind, name: str, names: frozenset[str]) -> Condition:
    still_set = {key for key, row in parameters(target.aws, kind, name).items() if row.source == "user"} & names
    state = f"still set: {', '.join(sorted(still_set))}" if still_set else "at the engine's defaults"
    return Condition(
        not still_set, state, facts={"read back": f"{counted(len(names), 'parameter')} at the engine's defaults"}
    )


def _group(kind: ResourceKind, row: Mapping[str, Any]) -> ParameterGroup:
    return ParameterGroup(
        name=row[f"{_API_NOUNS[kind]}Name"],
        kind=kind,
        family=row["DBParameterGroupFamily"],
        description=row.get("Description", ""),
        arn=row.get(f"{_API_NOUNS[kind]}Arn", ""),
    )


def _parameter(row: Mapping[str, Any]) -> Parameter:
    return Parameter(
        name=row["ParameterName"],
        value=row.get("ParameterValue"),
        apply_type=row.get("ApplyType", ""),
        apply_method=row.get("ApplyMethod", ""),
        data_type=row.get("DataType", ""),
        allowed_values=row.get("AllowedValues"),
        is_modifiable=bool(row.get("IsModifiable")),
        source=row.get("Source", ""),
        description=row.get("Description", ""),
        minimum_engine_version=row.get("MinimumEngineVersion"),
    )
