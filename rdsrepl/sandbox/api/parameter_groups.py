"""Parameter groups of both kinds: of clusters and of instances.

Every family has a default group that is just there and never changes. A group of somebody's own holds the values that
were changed; all others are the family's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from rdsrepl.sandbox.api import engine_catalog, formulas
from rdsrepl.sandbox.api.faults import fault
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
    """What a group has instead of the family's default, and how it was asked to be applied."""

    value: str
    method: ApplyMethod


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A parameter group.

    Attributes:
        name: in lower case.
        kind: whose groups it is one of.
        family: ``postgres16``, ``aurora-postgresql17`` ….
        description: what its maker said of it.
        changes: what was changed in it.
    """

    name: str
    kind: ResourceKind
    family: str
    description: str
    changes: Mapping[str, GroupValue]

    @property
    def is_default(self) -> bool:
        """Whether it is the family's own, which nobody can change."""
        return self.name.startswith(_DEFAULT)

    @property
    def defaults(self) -> Mapping[str, EngineParameter]:
        """What the group can hold."""
        return engine_catalog.defaults(self.family, self.kind)

    def value(self, parameter: str) -> str | None:
        """Return a parameter's value as the group has it, a formula at times; None is PostgreSQL's own default."""
        change = self.changes.get(parameter)
        return change.value if change is not None else self.defaults[parameter].value


def default_name(family: str) -> str:
    """Return the name of a family's default group."""
    return f"{_DEFAULT}{family}"


class ParameterGroups:
    """The groups of one region."""

    def __init__(self, store: Store, quota: int = QUOTA) -> None:
        self._store = store
        self._quota = quota

    def find(self, kind: ResourceKind, name: str) -> StoredGroup | None:
        """Return a group, or None when there is none of that name."""
        name = name.lower()
        if name.startswith(_DEFAULT) and (family := name.removeprefix(_DEFAULT)) in engine_catalog.families():
            return StoredGroup(name, kind, family, f"Default parameter group for {family}", {})
        with self._store.lock:
            record = self._store.section(_SECTION).get(_key(kind, name))
            return None if record is None else _group(record)

    def get(self, kind: ResourceKind, name: str) -> StoredGroup:
        """Return a group.

        Raises:
            Fault: there is none of that name.
        """
        found = self.find(kind, name)
        if found is None:
            # One code for both kinds, AWS's.
            raise fault("DBParameterGroupNotFoundFault", f"{aws_noun(kind)} not found: {name}")
        return found

    def all(self, kind: ResourceKind) -> list[StoredGroup]:
        """Return every group of a kind, the default ones first."""
        names = [default_name(family) for family in engine_catalog.families()]
        with self._store.lock:
            own = [_group(record) for record in self._store.section(_SECTION).values() if record["kind"] == kind]
        return [*(self.get(kind, name) for name in names), *own]

    def values(self, kind: ResourceKind, name: str, instance_class: str) -> dict[str, str]:
        """Return every parameter that has a value, as a server of an instance class gets it.

        Formulas are evaluated. What RDS keeps for itself (the port, ``listen_addresses`` …) is left out.

        Raises:
            Fault: there is no such group, or no such class.
        """
        group = self.get(kind, name)
        one = engine_catalog.instance_class(instance_class)
        found: dict[str, str] = {}
        for parameter in group.defaults.values():
            value = group.value(parameter.name)
            if value is None or not parameter.is_modifiable:
                continue
            numeric = parameter.data_type in ("integer", "float")
            found[parameter.name] = formulas.evaluate(value, one.vcpu, one.memory_bytes) if numeric else value
        return found

    def create(self, group: StoredGroup) -> StoredGroup:
        """Keep a new group.

        Raises:
            Fault: its name is none, or taken, its family is not known, or there are too many groups.
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
        """Give parameters of a group new values; return how each takes effect that has another one now."""
        return self._replace(group, {**group.changes, **changes}, {name: one.method for name, one in changes.items()})

    def reset(self, group: StoredGroup, methods: Mapping[str, ApplyMethod]) -> Mapping[str, ApplyType]:
        """Give parameters of a group their defaults again; return how each takes effect that has another value now."""
        kept = {name: change for name, change in group.changes.items() if name not in methods}
        return self._replace(group, kept, methods)

    def delete(self, group: StoredGroup) -> None:
        """Forget a group."""
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
