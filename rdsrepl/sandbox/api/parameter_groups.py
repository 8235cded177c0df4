"""DB parameter groups and DB cluster parameter groups, and the values of their parameters.

Every family has a default group, which is not stored and cannot be changed. The other groups store the values that were
changed; all other values are those of the family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from rdsrepl.sandbox.api import engine_catalog, formulas
from rdsrepl.sandbox.api.api_errors import fault
from rdsrepl.sandbox.api.parameter_catalog import EngineParameter
from rdsrepl.sandbox.api.records import check_identifier
from rdsrepl.sandbox.api.store import Store
from rdsrepl.sandbox.api.types import ApplyType, ResourceKind

ApplyMethod = Literal["immediate", "pending-reboot"]

QUOTA: Final = 50
_SECTION: Final = "groups"
_DEFAULT: Final = "default."
_NAME: Final = re.compile(r"[a-z](?:-?[a-z0-9])*")
_MAX_NAME_LENGTH: Final = 255


@dataclass(frozen=True, slots=True)
class GroupValue:
    """A changed value in a group, and the apply method with which it was set."""

    value: str
    method: ApplyMethod


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A parameter group.

    Attributes:
        name: the name, in lower case.
        kind: ``cluster`` or ``instance``.
        family: ``postgres16``, ``aurora-postgresql17`` ….
        description: the description from its creation.
        changes: the changed values, by parameter.
    """

    name: str
    kind: ResourceKind
    family: str
    description: str
    changes: Mapping[str, GroupValue]

    @property
    def is_default(self) -> bool:
        """Whether it is the default group of its family, which cannot be changed."""
        return self.name.startswith(_DEFAULT)

    @property
    def defaults(self) -> Mapping[str, EngineParameter]:
        """The parameters of the group with their defaults."""
        return engine_catalog.defaults(self.family, self.kind)

    def value(self, parameter: str) -> str | None:
        """Return the value of a parameter, which may be a formula; None is the default of PostgreSQL."""
        change = self.changes.get(parameter)
        return change.value if change is not None else self.defaults[parameter].value


def default_name(family: str) -> str:
    """Return the name of the default group of a family."""
    return f"{_DEFAULT}{family}"


class ParameterGroups:
    """The parameter groups of one region."""

    def __init__(self, store: Store, quota: int = QUOTA) -> None:
        self._store = store
        self._quota = quota

    def find(self, kind: ResourceKind, name: str) -> StoredGroup | None:
        """Return a group; None when it does not exist."""
        name = name.lower()
        if name.startswith(_DEFAULT) and (family := name.removeprefix(_DEFAULT)) in engine_catalog.families():
            return StoredGroup(name, kind, family, f"Default parameter group for {family}", {})
        with self._store.lock:
            record = self._store.section(_SECTION).get(_key(kind, name))
            return None if record is None else _group(record)

    def get(self, kind: ResourceKind, name: str) -> StoredGroup:
        """Return a group.

        Raises:
            Fault: the group does not exist.
        """
        group = self.find(kind, name)
        if group is None:
            # AWS uses the same code for both kinds.
            raise fault("DBParameterGroupNotFoundFault", f"{aws_noun(kind)} not found: {name}")
        return group

    def all(self, kind: ResourceKind) -> list[StoredGroup]:
        """Return every group of a kind, the default ones first."""
        names = [default_name(family) for family in engine_catalog.families()]
        with self._store.lock:
            own = [_group(record) for record in self._store.section(_SECTION).values() if record["kind"] == kind]
        return [*(self.get(kind, name) for name in names), *own]

    def values(self, kind: ResourceKind, name: str, instance_class: str) -> dict[str, str]:
        """Return every parameter with a value for a server of an instance class.

        Formulas are replaced by their values. Parameters that RDS reserves (``port`` …) are omitted.

        Raises:
            Fault: the group or the class does not exist.
        """
        group = self.get(kind, name)
        one = engine_catalog.instance_class(instance_class)
        values: dict[str, str] = {}
        for parameter in group.defaults.values():
            value = group.value(parameter.name)
            if value is None or not parameter.is_modifiable:
                continue
            numeric = parameter.data_type in ("integer", "float")
            values[parameter.name] = formulas.evaluate(value, one.vcpu, one.memory_bytes) if numeric else value
        return values

    def create(self, group: StoredGroup) -> StoredGroup:
        """Save a new group.

        Raises:
            Fault: the name is not valid or in use, the family does not exist, or the quota is reached.
        """
        engine_catalog.defaults(group.family, group.kind)
        check_identifier(f"{aws_noun(group.kind)}Name", group.name, _MAX_NAME_LENGTH)
        with self._store.lock:
            section = self._store.section(_SECTION)
            if _key(group.kind, group.name) in section:
                raise fault("DBParameterGroupAlreadyExistsFault", f"Parameter group {group.name} already exists")
            if sum(record["kind"] == group.kind for record in section.values()) >= self._quota:
                message = f"Cannot create more than {self._quota} parameter groups"
                raise fault("DBParameterGroupQuotaExceededFault", message)
            self._keep(group)
        return group

    def modify(self, group: StoredGroup, changes: Mapping[str, GroupValue]) -> Mapping[str, ApplyType]:
        """Change parameters of a group; return when each parameter with another value takes effect."""
        return self._replace(group, {**group.changes, **changes}, {name: one.method for name, one in changes.items()})

    def reset(self, group: StoredGroup, methods: Mapping[str, ApplyMethod]) -> Mapping[str, ApplyType]:
        """Reset parameters of a group; return when each parameter with another value takes effect."""
        kept = {name: change for name, change in group.changes.items() if name not in methods}
        return self._replace(group, kept, methods)

    def delete(self, group: StoredGroup) -> None:
        """Delete a group."""
        with self._store.lock:
            self._store.section(_SECTION).pop(_key(group.kind, group.name), None)
            self._store.save()

    def _replace(
        self, group: StoredGroup, changes: Mapping[str, GroupValue], methods: Mapping[str, ApplyMethod]
    ) -> Mapping[str, ApplyType]:
        new = StoredGroup(group.name, group.kind, group.family, group.description, changes)
        self._keep(new)
        return {
            name: "dynamic" if method == "immediate" and group.defaults[name].apply_type == "dynamic" else "static"
            for name, method in methods.items()
            if new.value(name) != group.value(name)
        }

    def _keep(self, group: StoredGroup) -> None:
        with self._store.lock:
            self._store.section(_SECTION)[_key(group.kind, group.name)] = {
                "kind": group.kind,
                "name": group.name,
                "family": group.family,
                "description": group.description,
                "changes": {name: [change.value, change.method] for name, change in group.changes.items()},
            }
            self._store.save()


def _group(record: Mapping[str, Any]) -> StoredGroup:
    changes = {name: GroupValue(value, method) for name, (value, method) in record["changes"].items()}
    return StoredGroup(record["name"], record["kind"], record["family"], record["description"], changes)


def _key(kind: ResourceKind, name: str) -> str:
    return f"{kind}:{name}"


def aws_noun(kind: ResourceKind) -> str:
    """Return the word for a kind of group in the names of the API: ``DBClusterParameterGroup``."""
    return "DBClusterParameterGroup" if kind == "cluster" else "DBParameterGroup"
