"""DB parameter groups and DB cluster parameter groups: one noun of two kinds, whose API calls differ in a word."""

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

_T = TypeVar("_T")
ApplyMethod = Literal["immediate", "pending-reboot"]

KINDS: Final[tuple[ResourceKind, ...]] = ("cluster", "instance")
# ModifyDBParameterGroup takes no more in one request.
MODIFY_AT_ONCE: Final = 20
_READ_BACK_SECONDS: Final = 120.0
_WORDS: Final[Mapping[ResourceKind, str]] = {"cluster": "DBClusterParameterGroup", "instance": "DBParameterGroup"}
_PARAMETERS: Final[Mapping[ResourceKind, str]] = {"cluster": "DBClusterParameters", "instance": "DBParameters"}


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """A group as it is listed."""

    name: str
    kind: ResourceKind
    family: str
    description: str
    arn: str

    @property
    def is_default(self) -> bool:
        """Whether it is AWS's own, which nobody can change."""
        return self.name.startswith("default.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a group, or of a family's engine defaults.

    Attributes:
        value: as text, in the unit of ``pg_settings``, or a formula; None where the engine's own default holds.
        apply_type: ``static`` (a reboot) or ``dynamic``. What ``apply_method`` says of a default group means nothing.
        source: ``user``, ``engine-default`` or ``system``; not ``user`` where the value that was set is the default.
        allowed_values: ``0,1`` or ``5-262143``; None where anything goes.
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
    """A value to set; the apply method follows from the parameter's apply type."""

    name: str
    value: str
    apply_method: ApplyMethod


def ls(aws: Aws, kind: ResourceKind | None = None) -> tuple[ParameterGroup, ...]:
    """Return the PostgreSQL groups of the region, of one kind or both.

    Raises:
        Error: AWS refused.
    """
    found = []
    for one in KINDS if kind is None else (kind,):
        rows = session.pages(aws, "rds", f"Describe{_WORDS[one]}s", f"{_WORDS[one]}s")
        found += [_group(one, row) for row in rows]
    return tuple(group for group in found if is_postgres(group.family))


def get(aws: Aws, kind: ResourceKind, name: str) -> ParameterGroup:
    """Return one group.

    Raises:
        NotFound: there is none of that name and kind in the region.
    """
    answer = session.call(aws, "rds", f"Describe{_WORDS[kind]}s", {f"{_WORDS[kind]}Name": name})
    return _group(kind, answer[f"{_WORDS[kind]}s"][0])


def find(aws: Aws, name: str, kind: ResourceKind | None = None) -> ParameterGroup:
    """Return the group of a name, whichever kind it is of.

    Raises:
        NotFound: there is none.
        BadValue: there is one of each kind.
    """
    found = []
    for one in KINDS if kind is None else (kind,):
        try:
            found.append(get(aws, one, name))
        except NotFound as exc:
            missing = exc
    if not found:
        missing.message = f"no parameter group {name}"
        missing.hint = "rdsrepl param-group list shows what there is; another region: --region"
        raise missing
    if len(found) > 1 and not found[0].is_default:
        raise BadValue(
            f"{name} is the name of a cluster and of an instance parameter group", hint="say which: --kind cluster"
        )
    return found[0]


def parameters(aws: Aws, kind: ResourceKind, name: str) -> tuple[Parameter, ...]:
    """Return a group's parameters.

    All of them: AWS reports one that was set to its default with the default's source, so that a filter by source does
    not find it.

    Args:
        aws: the identity.
        kind: the group's.
        name: the group's.

    Raises:
        NotFound: there is no such group.
    """
    request = {f"{_WORDS[kind]}Name": name}
    operation = f"Describe{_PARAMETERS[kind]}"
    return tuple(map(_parameter, session.pages(aws, "rds", operation, "Parameters", request)))


def defaults(aws: Aws, kind: ResourceKind, family: str) -> dict[str, Parameter]:
    """Return a family's engine defaults by parameter name (DescribeEngineDefaultParameters).

    Raises:
        Error: there is no such family.
    """
    operation = "DescribeEngineDefault" + ("ClusterParameters" if kind == "cluster" else "Parameters")
    request = {"DBParameterGroupFamily": family}
    rows = session.pages(aws, "rds", operation, "EngineDefaults.Parameters", request)
    return {parameter.name: parameter for parameter in map(_parameter, rows)}


def is_postgres(family: str) -> bool:
    """Say whether a family is PostgreSQL's, of RDS or Aurora."""
    return re.fullmatch(r"(aurora-)?postgres(ql)?\d+", family) is not None


def check_name(name: str) -> str:
    """Return NAME as AWS keeps it, in lower case, if a new group may have it (CreateDBParameterGroup).

    Raises:
        BadValue: it may not.
    """
    lower = identifiers.check(name, "a parameter group", longest=255)
    if lower.startswith("default-") or lower == "default":
        raise BadValue(f"{name!r} looks like one of AWS's default groups", hint="choose another name")
    return lower


def refuse_default(name: str) -> None:
    """Refuse to change one of AWS's own groups.

    Raises:
        Refused: it is one.
    """
    if name.startswith("default."):
        raise Refused(
            f"{name} is a default group, which nobody can change",
            hint="make one of your own: rdsrepl param-group create NAME --cluster ID, "
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
    """Plan to make a group, set values, and read them back; one that exists is only completed.

    Args:
        group: as it shall be; its ARN does not matter.
        values: what to set.
        existing: the group of that name, when there is one.
        existing_values: what is set in it.
        copy_from: a custom group whose other settings it shall have.

    Raises:
        AlreadyExists: there is one of that name with another family.
    """
    if existing is not None and existing.family != group.family:
        raise AlreadyExists(
            f"parameter group {group.name} exists, for {existing.family}",
            hint=f"choose another name for {group.family}",
        )
    steps: list[Step] = []
    word = _WORDS[group.kind]
    missing = [value for value in values if (existing_values or {}).get(value.name) != value.value]
    if existing is None and copy_from is None:
        request = {
            f"{word}Name": group.name,
            "DBParameterGroupFamily": group.family,
            "Description": group.description,
        }
        steps.append(AwsCall(f"create {group.kind} parameter group {group.name}", "rds", f"Create{word}", request))
    elif existing is None:
        request = {
            f"Source{word}Identifier": str(copy_from),
            f"Target{word}Identifier": group.name,
            f"Target{word}Description": group.description,
        }
        summary = f"copy {group.kind} parameter group {copy_from} to {group.name}"
        steps.append(AwsCall(summary, "rds", f"Copy{word}", request))
    steps += _modify(group.kind, group.name, missing)
    if steps:
        steps.append(_read_back(group.kind, group.name, values))
    return Plan(
        f"create parameter group {group.name}",
        tuple(steps),
        unchanged=f"parameter group {group.name} has all that already",
    )


def set_values(kind: ResourceKind, name: str, values: Sequence[NewValue]) -> Plan:
    """Plan to set values in a group and read them back.

    Raises:
        Refused: it is a default group.
    """
    refuse_default(name)
    steps = (*_modify(kind, name, values), *([_read_back(kind, name, values)] if values else []))
    return Plan(f"set parameters of group {name}", steps, unchanged=f"parameter group {name} has these values already")


def reset(kind: ResourceKind, name: str, resets: Sequence[tuple[str, ApplyMethod]], *, everything: bool) -> Plan:
    """Plan to give parameters back to the engine's default.

    Args:
        kind: the group's.
        name: the group's.
        resets: parameter names and how each takes effect.
        everything: all of the group's, in one call.

    Raises:
        Refused: it is a default group.
    """
    refuse_default(name)
    word = _WORDS[kind]
    steps: list[Step] = []
    if everything and resets:
        request: dict[str, Any] = {f"{word}Name": name, "ResetAllParameters": True}
        steps.append(AwsCall(f"reset all parameters of group {name}", "rds", f"Reset{word}", request))
    else:
        for chunk in _chunks(resets):
            items = [{"ParameterName": parameter, "ApplyMethod": method} for parameter, method in chunk]
            request = {f"{word}Name": name, "Parameters": items}
            names = ", ".join(parameter for parameter, _ in chunk)
            steps.append(AwsCall(f"reset {names} in group {name}", "rds", f"Reset{word}", request))
    if steps:
        gone = frozenset(parameter for parameter, _ in resets)
        steps.append(
            Wait(
                f"read group {name} back",
                partial(_none_set, kind=kind, name=name, names=gone),
                _READ_BACK_SECONDS,
            )
        )
    return Plan(f"reset parameters of group {name}", tuple(steps), unchanged="none of them is set in this group")


def delete(kind: ResourceKind, name: str) -> Plan:
    """Plan to delete a group that nobody uses.

    Raises:
        Refused: it is a default group.
    """
    refuse_default(name)
    request = {f"{_WORDS[kind]}Name": name}
    call = AwsCall(f"delete {kind} parameter group {name}", "rds", f"Delete{_WORDS[kind]}", request)
    return Plan(f"delete parameter group {name}", (call,))


def _modify(kind: ResourceKind, name: str, values: Sequence[NewValue]) -> list[Step]:
    word = _WORDS[kind]
    steps: list[Step] = []
    for chunk in _chunks(values):
        items = [
            {"ParameterName": value.name, "ParameterValue": value.value, "ApplyMethod": value.apply_method}
            for value in chunk
        ]
        names = ", ".join(value.name for value in chunk)
        request = {f"{word}Name": name, "Parameters": items}
        steps.append(AwsCall(f"set {names} in group {name}", "rds", f"Modify{word}", request))
    return steps


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), MODIFY_AT_ONCE):
        yield items[start : start + MODIFY_AT_ONCE]


def _read_back(kind: ResourceKind, name: str, values: Sequence[NewValue]) -> Wait:
    wanted = {value.name: value.value for value in values}
    return Wait(f"read group {name} back", partial(_all_set, kind=kind, name=name, wanted=wanted), _READ_BACK_SECONDS)


def _all_set(target: Target, *, kind: ResourceKind, name: str, wanted: Mapping[str, str]) -> Condition:
    found = {parameter.name: parameter.value for parameter in parameters(target.aws, kind, name)}
    differ = [parameter for parameter, value in wanted.items() if found.get(parameter) != value]
    state = f"not yet read back: {', '.join(differ)}" if differ else "as set"
    return Condition(not differ, state, facts={"read back": f"{len(wanted)} parameters as set"})


def _none_set(target: Target, *, kind: ResourceKind, name: str, names: frozenset[str]) -> Condition:
    found = {row.name for row in parameters(target.aws, kind, name) if row.source == "user"} & names
    state = f"still set: {', '.join(sorted(found))}" if found else "at the engine's defaults"
    return Condition(not found, state, facts={"read back": f"{len(names)} parameters at the engine's defaults"})


def _group(kind: ResourceKind, row: Mapping[str, Any]) -> ParameterGroup:
    return ParameterGroup(
        name=row[f"{_WORDS[kind]}Name"],
        kind=kind,
        family=row["DBParameterGroupFamily"],
        description=row.get("Description", ""),
        arn=row.get(f"{_WORDS[kind]}Arn", ""),
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
