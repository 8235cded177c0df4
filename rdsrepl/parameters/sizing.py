"""Size the parameters of logical replication: the rules of ``param-group create``.

``docs/sizing.md`` lists the rules and their sources. Pure functions: no API calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from rdsrepl.aws.engines import Topology
from rdsrepl.errors import BadValue
from rdsrepl.parameters import formulas
from rdsrepl.parameters.allowed_values import is_allowed, upper_bound
from rdsrepl.parameters.instance_classes import Hardware, all_hardware
from rdsrepl.postgres import versions
from rdsrepl.text.counts import form
from rdsrepl.text.suggestions import did_you_mean
from rdsrepl.units import parse_boolean

Engine = Literal["postgres", "aurora-postgresql"]
ApplyType = Literal["static", "dynamic"]
ApplyMethod = Literal["immediate", "pending-reboot"]

# PostgreSQL's own defaults, used where the family leaves a parameter unset.
_POSTGRESQL: Final = {
    "autovacuum_max_workers": 3,
    "max_active_replication_origins": 10,
    "max_logical_replication_workers": 4,
    "max_parallel_workers": 8,
    "max_replication_slots": 10,
    "max_slot_wal_keep_size": -1,
    "max_sync_workers_per_subscription": 2,
    "max_wal_senders": 10,
    "max_worker_processes": 8,
}
_MULTI_AZ_READERS: Final = 2
_SPARE_WALSENDERS: Final = 2
_LEAST_SLOT_WAL_MB: Final = 4096
# The parameters that have a rule, in the order of the proposals.
SIZED_PARAMETERS: Final = (
    "rds.logical_replication",
    "max_replication_slots",
    "max_active_replication_origins",
    "max_wal_senders",
    "max_logical_replication_workers",
    "max_sync_workers_per_subscription",
    "max_worker_processes",
    "max_slot_wal_keep_size",
    "hot_standby_feedback",
    "sync_replication_slots",
    "rds.logical_slot_sync_dbname",
)

_SWITCH_SOURCE: Final = "RDS and Aurora user guides: rds.logical_replication"
_PUBLISHER_SOURCE: Final = "PostgreSQL manual, Logical Replication, Configuration Settings: Publishers"
_SUBSCRIBER_SOURCE: Final = "PostgreSQL manual, Logical Replication, Configuration Settings: Subscribers"
_WORKERS_SOURCE: Final = "Aurora user guide, setting up logical replication: max_worker_processes"
_SLOT_WAL_SOURCE: Final = "PostgreSQL manual, Replication: max_slot_wal_keep_size"
_SYNC_SOURCE: Final = "PostgreSQL manual, Replication Slot Synchronization; RDS user guide, failover slots"
_OVERRIDE_SOURCE: Final = "--set"


@dataclass(frozen=True, slots=True)
class SizingRequest:
    """What the parameter group is sized for.

    Attributes:
        engine: the engine of the family.
        topology: the kind of server that the group is for.
        major: PostgreSQL's major version.
        slots: planned logical slots.
        subscriptions: planned subscriptions.
        replicas: planned read replicas; those of Aurora use neither a slot nor a walsender.
        hardware: vCPU and memory of the instance class; None where the class is unknown.
        storage_gib: allocated storage in GiB; None where it is unknown.
        overrides: values chosen by the user, by parameter.
    """

    engine: Engine
    topology: Topology
    major: int
    slots: int
    subscriptions: int
    replicas: int
    hardware: Hardware | None
    storage_gib: int | None
    overrides: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Default:
    """A parameter as the API reports it: the family's default, or the value of the group that is copied.

    Attributes:
        value: a value or a formula; None where it is unset and PostgreSQL's own default applies.
        apply_type: ``static`` or ``dynamic``.
        allowed_values: ``AllowedValues`` of the API; None allows all.
        is_modifiable: whether the API can set it.
        data_type: ``integer``, ``boolean``, …; None where it is unknown.
    """

    value: str | None
    apply_type: ApplyType
    allowed_values: str | None
    is_modifiable: bool
    data_type: str | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """One parameter: its default, the proposed value, and the reason.

    Attributes:
        name: the parameter.
        default: the family's default as text; None where it is unset.
        default_evaluated: the default evaluated for the instance class, or PostgreSQL's own default where it is unset.
            None where the class is unknown or the default is not a number.
        value: the value to set; None keeps the default.
        apply_type: ``static`` or ``dynamic``.
        apply_method: how the value is applied.
        reason: why, in a few words.
        source: the document that states the rule.
        value_evaluated: the resulting value evaluated for the instance class; None as above.
    """

    name: str
    default: str | None
    default_evaluated: int | None
    value: str | None
    apply_type: ApplyType
    apply_method: ApplyMethod
    reason: str
    source: str
    value_evaluated: int | None


@dataclass(frozen=True, slots=True)
class Sizing:
    """The proposals in a stable order, and notes.

    Attributes:
        proposals: one for each parameter that has a rule or an override.
        notes: what was skipped, what no parameter can do, and what to monitor.
    """

    proposals: tuple[Proposal, ...]
    notes: tuple[str, ...]


# The value of a parameter on an instance class.
_ByClass = Callable[[Hardware], int]


def propose(request: SizingRequest, defaults: Mapping[str, Default]) -> Sizing:
    """Size the parameters of logical replication.

    A proposal is never below the default and never above what AWS allows. To copy a custom group, pass its values as
    the defaults: a sufficient value is kept, a lower one is raised.

    Args:
        request: what the group is sized for.
        defaults: every parameter of the family.

    Raises:
        BadValue: a number is negative; the group cannot turn logical replication on; a required value is above what
            AWS allows; an override is unknown, not modifiable, not allowed, or too low.
    """
    return _Sizer(request, defaults).run()


class _Sizer:
    def __init__(self, request: SizingRequest, defaults: Mapping[str, Default]) -> None:
        self._request = request
        self._defaults = defaults
        self._classes = all_hardware() if request.hardware is None else (request.hardware,)
        self._proposals: dict[str, Proposal] = {}
        self._notes: list[str] = []

    def run(self) -> Sizing:
        """Apply the rules in order; later rules use the results of earlier ones."""
        request = self._request
        self._check()
        self._enable_logical_replication()
        sync = self._count_sync_workers()
        physical = self._count_standbys()
        reserve = sync if request.slots else 0
        origins = request.subscriptions * (1 + sync)
        self._size_slots(physical, reserve, origins)
        self._size(
            "max_wal_senders",
            lambda _: request.slots + physical + reserve + _SPARE_WALSENDERS,
            _sum(
                (request.slots, form(request.slots, "slot", "slots")),
                (physical, form(physical, "standby", "standbys")),
                (reserve, "table-sync reserve"),
                (_SPARE_WALSENDERS, "spare for reconnects"),
            ),
            _PUBLISHER_SOURCE,
        )
        logical = self._size(
            "max_logical_replication_workers",
            lambda _: origins,
            _sum(_workers(request.subscriptions, "apply"), _workers(request.subscriptions * sync, "table-sync")),
            _SUBSCRIBER_SOURCE,
        )
        self._size_worker_processes(logical)
        self._limit_slot_wal()
        self._slot_sync(physical)
        for name in sorted(request.overrides.keys() - self._proposals.keys()):
            self._set_override(name, "chosen with --set", _OVERRIDE_SOURCE)
        self._note_parallel_apply()
        order = {name: position for position, name in enumerate(SIZED_PARAMETERS)}
        ordered = sorted(self._proposals.values(), key=lambda p: (order.get(p.name, len(order)), p.name))
        return Sizing(tuple(ordered), tuple(self._notes))

    def _check(self) -> None:
        request = self._request
        for name, number in (
            ("slots", request.slots),
            ("subscriptions", request.subscriptions),
            ("replicas", request.replicas),
            ("storage", request.storage_gib or 0),
        ):
            if number < 0:
                raise BadValue(f"{name}: {number} is negative", hint="give 0 or more")
        if (request.engine == "aurora-postgresql") != (request.topology == "aurora"):
            raise BadValue(
                f"engine {request.engine} has no {request.topology.replace('_', ' ')}",
                hint="families aurora-postgresqlNN are for Aurora clusters, postgresNN for all others",
            )
        for name, value in request.overrides.items():
            self._check_override(name, value)

    def _check_override(self, name: str, value: str) -> None:
        default = self._defaults.get(name)
        if default is None:
            raise BadValue(
                f"this family has no parameter {name}",
                hint=did_you_mean(name, self._defaults, otherwise="list them: rdsrepl param-group show NAME --all"),
            )
        if not default.is_modifiable:
            hint = "rds.logical_replication=1 sets it" if name == "wal_level" else "omit it"
            raise BadValue(f"{name} is not modifiable", hint=hint)
        if not is_allowed(value, default.allowed_values, default.data_type):
            what = default.allowed_values or f"a value of type {default.data_type}"
            raise BadValue(f"{name} cannot be {value!r}", hint=f"allowed: {what}")

    def _enable_logical_replication(self) -> None:
        name, why = "rds.logical_replication", "the only switch for wal_level=logical"
        if name not in self._defaults:
            raise BadValue(
                f"a group of this kind and family has no {name}",
                hint="for Aurora and Multi-AZ DB clusters it is in the DB cluster parameter group: --kind cluster",
            )
        if self._enable(name, why, _SWITCH_SOURCE):
            return
        override = self._request.overrides.get(name)
        if override is not None:
            raise BadValue(f"{name}={override} turns logical replication off", hint=f"omit it: it must be 1, {why}")
        raise BadValue(f"{name} is off and not modifiable in this family", hint="choose another family")

    def _count_standbys(self) -> int:
        request = self._request
        if request.topology == "aurora":
            if request.replicas:
                self._note("Aurora readers share the storage of the writer: they use neither a slot nor a walsender")
            return 0
        return request.replicas + (_MULTI_AZ_READERS if request.topology == "multi_az_cluster" else 0)

    def _count_sync_workers(self) -> int:
        name = "max_sync_workers_per_subscription"
        if name not in self._defaults:
            self._note_missing(name)
            return _POSTGRESQL[name]
        if name in self._request.overrides:
            self._set_override(name, "chosen with --set; the sums below include it", _OVERRIDE_SOURCE)
        else:
            self._leave(
                name, "kept: the number of tables that a new subscription copies in parallel", _SUBSCRIBER_SOURCE
            )
        return max(self._by_class(name)(hardware) for hardware in self._classes)

    def _size_slots(self, physical: int, reserve: int, origins: int) -> None:
        slots = self._request.slots
        parts = [
            (slots, form(slots, "slot", "slots")),
            (physical, form(physical, "standby", "standbys")),
            (reserve, "table-sync reserve"),
        ]
        noun = form(origins, "origin", "origins")
        if self._request.major >= versions.ORIGIN_LIMIT_SINCE:
            self._size(
                "max_active_replication_origins",
                lambda _: origins,
                _sum((origins, f"{noun}: one for each subscription and each of its table syncs")),
                _SUBSCRIBER_SOURCE,
            )
        else:
            parts.append((origins, f"{noun} of subscriptions"))
        need = sum(count for count, _ in parts)
        self._size("max_replication_slots", lambda _: need, _sum(*parts), _PUBLISHER_SOURCE)

    def _size_worker_processes(self, logical: _ByClass) -> None:
        autovacuum, parallel = self._by_class("autovacuum_max_workers"), self._by_class("max_parallel_workers")
        hardware = self._request.hardware
        if hardware is None:
            floor = min(self._classes, key=lambda h: (h.vcpu, h.memory_bytes))
            why = f"{logical(floor)} logical + autovacuum + parallel workers; class unknown, sufficient on every class"
        else:
            why = _sum(
                (logical(hardware), "logical"),
                (autovacuum(hardware), "autovacuum"),
                _workers(parallel(hardware), "parallel"),
            )
        self._size("max_worker_processes", lambda h: logical(h) + autovacuum(h) + parallel(h), why, _WORKERS_SOURCE)
        if (
            self._request.major >= versions.AUTOVACUUM_WORKER_SLOTS_SINCE
            and "autovacuum_worker_slots" in self._defaults
        ):
            self._note(
                "max_worker_processes includes autovacuum_max_workers, which 18 can raise without a restart up to"
                " autovacuum_worker_slots: raise max_worker_processes with it"
            )

    def _limit_slot_wal(self) -> None:
        name, request = "max_slot_wal_keep_size", self._request
        default = self._defaults.get(name)
        if default is None:
            self._note_missing(name)
            return
        if name in request.overrides:
            self._set_override(
                name, "chosen with --set: a slot that retains more MB of WAL is invalidated", _OVERRIDE_SOURCE
            )
            return
        unlimited = default.value in (None, "", "-1")
        if not unlimited:
            self._leave(name, "kept: a slot that retains more MB of WAL is invalidated", _SLOT_WAL_SOURCE)
            return
        if not request.slots:
            self._leave(name, "unlimited: no slot is planned", _SLOT_WAL_SOURCE)
            return
        if request.storage_gib is None or request.topology == "aurora" or not default.is_modifiable:
            self._leave(name, "unlimited: no slot is invalidated", _SLOT_WAL_SOURCE)
            effect = (
                "makes the cluster's volume grow"
                if request.topology == "aurora"
                else "fills the disk until the server stops"
            )
            self._note(f"{name} is unlimited: a slot that is not consumed {effect}; monitor with rdsrepl slot check")
            return
        bound = upper_bound(default.allowed_values)
        quarter_mb = request.storage_gib * 1024 // 4
        value = max(_LEAST_SLOT_WAL_MB, quarter_mb)
        value = value if bound is None else min(value, bound)
        gb = f"{value / 1024:.1f}".removesuffix(".0")
        reason = f"a slot that retains more than {gb} GB is invalidated, so that the disk does not fill"
        self._add(name, str(value), reason, _SLOT_WAL_SOURCE)

    def _slot_sync(self, physical: int) -> None:
        request = self._request
        if request.topology == "aurora":
            if request.slots:
                self._note("Aurora does not support slot synchronisation: its slots are on the shared volume")
            return
        if request.topology == "multi_az_cluster":
            if request.slots:
                self._note(
                    "RDS copies slots to the readers of a Multi-AZ DB cluster: sync_replication_slots is not needed"
                )
            return
        if not physical or not request.slots:
            return
        if request.major < versions.FAILOVER_SLOTS_SINCE:
            self._note("before 17 a promoted replica does not have the slots of its source: create them there")
            return
        override = request.overrides.get("sync_replication_slots")
        if override is not None and not parse_boolean(override):
            self._set_override(
                "sync_replication_slots", "chosen with --set: replicas do not synchronise slots", _OVERRIDE_SOURCE
            )
            return
        if not self._enable("sync_replication_slots", "synchronises failover slots to this standby", _SYNC_SOURCE):
            return
        override = request.overrides.get("hot_standby_feedback")
        if not self._enable("hot_standby_feedback", "slot synchronisation requires it", _SYNC_SOURCE) and override:
            raise BadValue(
                f"hot_standby_feedback={override}, but slot synchronisation requires it",
                hint="omit it, or add --set sync_replication_slots=0",
            )
        if "rds.logical_slot_sync_dbname" in request.overrides:
            self._set_override(
                "rds.logical_slot_sync_dbname",
                "chosen with --set: the database of the slot sync worker",
                _OVERRIDE_SOURCE,
            )
        self._note("the replica synchronises the slots: attach this group, or a similar one, to each replica as well")
        self._note(
            "set synchronized_standby_slots on the source, so that no consumer is ahead of the replica; its value is"
            " the replica's physical slot, rds_<region>_db_<resource id>, which exists after the replica is created"
        )

    def _note_parallel_apply(self) -> None:
        request = self._request
        if request.subscriptions and request.major >= versions.PARALLEL_APPLY_DEFAULT_SINCE:
            self._note(
                "subscriptions created on 18 apply large transactions in parallel: each uses up to"
                " max_parallel_apply_workers_per_subscription more workers, if max_logical_replication_workers has free"
                " ones"
            )

    def _enable(self, name: str, why: str, source: str) -> bool:
        """Turn a boolean parameter on; return whether it is on afterwards."""
        default, override = self._defaults.get(name), self._request.overrides.get(name)
        if default is None:
            self._note_missing(name)
            return False
        if override is not None:
            if parse_boolean(override):
                self._set_override(name, why, source)
            return parse_boolean(override) is True
        if parse_boolean(default.value or ""):
            self._leave(name, f"already on: {why}", source)
            return True
        if not default.is_modifiable:
            self._note(f"{name} stays off: it is not modifiable in this family")
            return False
        on = "1" if is_allowed("1", default.allowed_values, default.data_type) else "on"
        self._add(name, on, why, source)
        return True

    def _size(self, name: str, need: _ByClass, why: str, source: str) -> _ByClass:
        """Raise a number to the required value; return the resulting value by instance class."""
        default, request = self._defaults.get(name), self._request
        if default is None:
            self._note_missing(name)
            return lambda _: _POSTGRESQL[name]
        if name in request.overrides:
            self._check_enough(name, need, why)
            self._set_override(name, f"chosen with --set; required: {why}", source)
            return self._by_class(name)
        if default.value and not formulas.is_readable(default.value):
            least = max(need(hardware) for hardware in self._classes)
            self._leave(name, f"unchanged, because its default is not readable; required: {why}", source)
            self._note(
                f"{name}: could not read its default {default.value}; if it is below {least}, add --set {name}={least}"
            )
            return need
        floor = self._floor(name, need)
        if floor is None:
            self._leave(name, f"sufficient: {why}" if why else "sufficient", source)
            return self._by_class(name)
        bound = upper_bound(default.allowed_values)
        if bound is not None and floor > bound:
            raise BadValue(
                f"{name} must be {floor} ({why}), but AWS allows at most {bound}",
                hint="plan fewer slots, subscriptions or replicas, or use a second cluster",
            )
        if not default.is_modifiable:
            raise BadValue(
                f"{name} must be {floor} ({why}), but it is not modifiable",
                hint="plan fewer slots, subscriptions or replicas, or use a second cluster",
            )
        value = self._raised(name, default, need, floor)
        self._add(name, value, why, source)
        return lambda hardware: _number(value, hardware, floor)

    def _raised(self, name: str, default: Default, need: _ByClass, floor: int) -> str:
        """Return the value to set: a formula stays a formula, so that it still grows with the instance class."""
        text = default.value
        if text and formulas.is_formula(text):
            return formulas.raise_floor(text, floor)
        if len({need(hardware) for hardware in self._classes}) == 1:
            return str(floor)
        # The class is unknown, and the required value grows with the class: a constant would not.
        floor = max((need(h) for h in self._classes if need(h) > 2 * h.vcpu), default=0)
        return f"GREATEST({{DBInstanceVCPU*2}},{max(floor, _number(text, None, _POSTGRESQL[name]))})"

    def _floor(self, name: str, need: _ByClass) -> int | None:
        """Return the least floor of the default that is sufficient on each class; None if the default is sufficient."""
        current = self._default_by_class(name)
        return max((need(h) for h in self._classes if current(h) < need(h)), default=None)

    def _check_enough(self, name: str, need: _ByClass, why: str) -> None:
        value, current = self._request.overrides[name], self._by_class(name)
        short = [hardware for hardware in self._classes if current(hardware) < need(hardware)]
        if len(short) == len(self._classes):
            least = min(need(hardware) for hardware in short)
            raise BadValue(f"{name}={value} is not enough: {why}", hint=f"give at least {least}, or omit it")
        if short:
            self._note(f"{name}={value} is sufficient on some instance classes only, and the class is unknown: {why}")

    def _by_class(self, name: str) -> _ByClass:
        if name in self._request.overrides:
            override = self._request.overrides[name]
            return lambda hardware: _or_default(formulas.evaluate(override, hardware), _POSTGRESQL[name])
        return self._default_by_class(name)

    def _default_by_class(self, name: str) -> _ByClass:
        default = self._defaults.get(name)
        text = None if default is None else default.value
        if text and not formulas.is_readable(text):
            self._note(f"{name}: could not read its default {text}; {_POSTGRESQL[name]} is assumed")
        return lambda hardware: _number(text, hardware, _POSTGRESQL[name])

    def _set_override(self, name: str, reason: str, source: str) -> None:
        value, default = self._request.overrides[name], self._defaults[name]
        self._add(name, None if value == default.value else value, reason, source)

    def _leave(self, name: str, reason: str, source: str) -> None:
        self._add(name, None, reason, source)

    def _add(self, name: str, value: str | None, reason: str, source: str) -> None:
        default, hardware = self._defaults[name], self._request.hardware
        evaluated = _evaluated(name, default.value, hardware)
        self._proposals[name] = Proposal(
            name=name,
            default=default.value,
            default_evaluated=evaluated,
            value=value,
            apply_type=default.apply_type,
            # ApplyMethod in the API's answers is not usable: it is pending-reboot for dynamic parameters as well.
            apply_method="immediate" if default.apply_type == "dynamic" else "pending-reboot",
            reason=reason,
            source=source,
            value_evaluated=evaluated if value is None else _evaluated(name, value, hardware),
        )

    def _note_missing(self, name: str) -> None:
        self._note(f"this family has no {name}: skipped")

    def _note(self, text: str) -> None:
        self._notes.append(text)


def _number(text: str | None, hardware: Hardware | None, unset: int) -> int:
    """Return the value of a default; UNSET where it has none, is not readable or uses unknown variables."""
    return _or_default(formulas.read(text, hardware) if text else None, unset)


def _or_default(value: int | None, unset: int) -> int:
    return unset if value is None else value


def _evaluated(name: str, text: str | None, hardware: Hardware | None) -> int | None:
    return formulas.read(text, hardware) if text else _POSTGRESQL.get(name)


def _workers(count: int, kind: str) -> tuple[int, str]:
    return count, f"{kind} {form(count, 'worker', 'workers')}"


def _sum(*parts: tuple[int, str]) -> str:
    """Return a sum as text: ``4 slots + 2 standbys + 2 spare = 8``, without the parts that are 0."""
    shown = [f"{count} {label}" for count, label in parts if count]
    if len(shown) < 2:
        return "".join(shown) or "none planned"
    return f"{' + '.join(shown)} = {sum(count for count, _ in parts)}"
