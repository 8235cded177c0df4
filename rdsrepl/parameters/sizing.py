"""How large the parameters of logical replication must be: the rules of ``param-group create``.

Each rule, with its source, stands in ``docs/sizing.md``. Pure: the API's answers come in, proposals go out.
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
from rdsrepl.text.suggestions import did_you_mean
from rdsrepl.units import parse_boolean

Engine = Literal["postgres", "aurora-postgresql"]
ApplyType = Literal["static", "dynamic"]
ApplyMethod = Literal["immediate", "pending-reboot"]

# What PostgreSQL takes where the family leaves a parameter unset.
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
# What has a rule, in the order in which proposals are made.
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
_KEEP_SOURCE: Final = "PostgreSQL manual, Replication: max_slot_wal_keep_size"
_SYNC_SOURCE: Final = "PostgreSQL manual, Replication Slot Synchronization; RDS user guide, failover slots"
_ASKED_SOURCE: Final = "--set"


@dataclass(frozen=True, slots=True)
class SizingRequest:
    """What the parameter group must serve.

    Attributes:
        engine: of the family.
        topology: what the group is for.
        major: PostgreSQL's major version.
        slots: logical slots that are planned on it.
        subscriptions: subscriptions that are planned on it.
        replicas: read replicas; of an Aurora cluster they take neither a slot nor a walsender.
        hardware: the class's; None where the class is not known.
        storage_gib: allocated storage, in GiB; None where it is not known.
        overrides: values that the user wants, by parameter.
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
        value: a value or a formula; None where it is unset, so that PostgreSQL's own default holds.
        apply_type: ``static`` or ``dynamic``.
        allowed_values: as ``allowed`` reads them; None allows all.
        is_modifiable: whether AWS lets it be set.
        data_type: ``integer``, ``boolean``, …; None where it is not known.
    """

    value: str | None
    apply_type: ApplyType
    allowed_values: str | None
    is_modifiable: bool
    data_type: str | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """One parameter: what it is, what it should be, and why.

    Attributes:
        name: the parameter.
        default: the family's default as text; None where it is unset.
        default_evaluated: what the default comes to on the class; where it is unset, what PostgreSQL then takes. None
            where the class is not known or it is no number.
        value: what to set; None leaves it.
        apply_type: ``static`` or ``dynamic``.
        apply_method: what to ask for when setting it.
        reason: why, in a few words.
        source: where the rule stands.
        value_evaluated: what the parameter comes to on the class, set or left; None as above.
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
    """The proposals in a stable order, and what else to know.

    Attributes:
        proposals: one for each parameter that has a rule or was asked for.
        notes: what no parameter can do, what was skipped, and what to watch.
    """

    proposals: tuple[Proposal, ...]
    notes: tuple[str, ...]


# What a parameter comes to on a class.
_ByClass = Callable[[Hardware], int]


def propose(demand: SizingRequest, defaults: Mapping[str, Default]) -> Sizing:
    """Size the parameters of logical replication.

    No proposal is below a default, nor above what AWS allows. For a copy of a custom group hand in that group's values
    as the defaults: they are then kept where they are enough, and raised where they are not.

    Args:
        demand: what is asked for.
        defaults: each parameter that exists in the family; one that is absent does not.

    Raises:
        BadValue: the demand makes no sense; the group cannot turn logical replication on; a need is above what AWS
            allows; an override is unknown, not modifiable, not allowed, or below what the demand needs.
    """
    return _Sizer(demand, defaults).run()


class _Sizer:
    def __init__(self, demand: SizingRequest, defaults: Mapping[str, Default]) -> None:
        self._demand = demand
        self._defaults = defaults
        self._classes = all_hardware() if demand.hardware is None else (demand.hardware,)
        self._proposals: dict[str, Proposal] = {}
        self._notes: list[str] = []

    def run(self) -> Sizing:
        """Apply the rules one after the other; later ones build on earlier ones."""
        demand = self._demand
        self._check()
        self._turn_on()
        sync = self._sync_workers()
        physical = self._physical()
        reserve = sync if demand.slots else 0
        origins = demand.subscriptions * (1 + sync)
        self._slots(physical, reserve, origins)
        self._size(
            "max_wal_senders",
            lambda _: demand.slots + physical + reserve + _SPARE_WALSENDERS,
            _sum(
                (demand.slots, "slots"),
                (physical, "standbys"),
                (reserve, "table-sync reserve"),
                (_SPARE_WALSENDERS, "spare for reconnects"),
            ),
            _PUBLISHER_SOURCE,
        )
        logical = self._size(
            "max_logical_replication_workers",
            lambda _: origins,
            _sum((demand.subscriptions, "apply workers"), (demand.subscriptions * sync, "table-sync workers")),
            _SUBSCRIBER_SOURCE,
        )
        self._workers(logical)
        self._keep_size()
        self._slot_sync(physical)
        for name in sorted(demand.overrides.keys() - self._proposals.keys()):
            self._asked(name, "asked for", _ASKED_SOURCE)
        self._explain()
        known = {name: place for place, name in enumerate(SIZED_PARAMETERS)}
        ordered = sorted(self._proposals.values(), key=lambda p: (known.get(p.name, len(known)), p.name))
        return Sizing(tuple(ordered), tuple(self._notes))

    def _check(self) -> None:
        demand = self._demand
        for name, number in (
            ("slots", demand.slots),
            ("subscriptions", demand.subscriptions),
            ("replicas", demand.replicas),
            ("storage", demand.storage_gib or 0),
        ):
            if number < 0:
                raise BadValue(f"{name}: {number} is below zero", hint="give 0 or more")
        if (demand.engine == "aurora-postgresql") != (demand.topology == "aurora"):
            raise BadValue(
                f"engine {demand.engine} has no {demand.topology.replace('_', ' ')}",
                hint="a family aurora-postgresqlNN is for Aurora clusters, postgresNN for all others",
            )
        for name, value in demand.overrides.items():
            self._check_override(name, value)

    def _check_override(self, name: str, value: str) -> None:
        default = self._defaults.get(name)
        if default is None:
            raise BadValue(
                f"this family has no parameter {name}",
                hint=did_you_mean(name, self._defaults, otherwise="rdsrepl param-group show NAME --all lists them"),
            )
        if not default.is_modifiable:
            hint = "rds.logical_replication=1 sets it" if name == "wal_level" else "leave it out"
            raise BadValue(f"AWS lets nobody set {name}", hint=hint)
        if not is_allowed(value, default.allowed_values, default.data_type):
            what = default.allowed_values or f"a value of type {default.data_type}"
            raise BadValue(f"{name} cannot be {value!r}", hint=f"allowed: {what}")

    def _turn_on(self) -> None:
        name, why = "rds.logical_replication", "the only switch for wal_level=logical"
        if name not in self._defaults:
            raise BadValue(
                f"a group of this kind and family has no {name}",
                hint="for Aurora and Multi-AZ DB clusters it stands in the DB cluster parameter group: --kind cluster",
            )
        if self._switch(name, why, _SWITCH_SOURCE):
            return
        override = self._demand.overrides.get(name)
        if override is not None:
            raise BadValue(
                f"{name}={override} turns logical replication off", hint=f"leave it out: it must be 1, {why}"
            )
        raise BadValue(f"{name} is off, and AWS lets nobody set it here", hint="choose another family")

    def _physical(self) -> int:
        demand = self._demand
        if demand.topology == "aurora":
            if demand.replicas:
                self._note("Aurora's readers share the writer's storage: they take neither a slot nor a walsender")
            return 0
        return demand.replicas + (_MULTI_AZ_READERS if demand.topology == "multi_az_cluster" else 0)

    def _sync_workers(self) -> int:
        name = "max_sync_workers_per_subscription"
        if name not in self._defaults:
            self._missing(name)
            return _POSTGRESQL[name]
        if name in self._demand.overrides:
            self._asked(name, "asked for; the other workers are counted with it", _ASKED_SOURCE)
        else:
            self._keep(name, "kept: how many tables a new subscription copies at a time", _SUBSCRIBER_SOURCE)
        return max(self._by_class(name)(hardware) for hardware in self._classes)

    def _slots(self, physical: int, reserve: int, origins: int) -> None:
        slots = self._demand.slots
        parts = [(slots, "slots"), (physical, "standbys"), (reserve, "table-sync reserve")]
        if self._demand.major >= versions.ORIGIN_LIMIT_SINCE:
            self._size(
                "max_active_replication_origins",
                lambda _: origins,
                _sum((origins, "origins: one each for a subscription and its table syncs")),
                _SUBSCRIBER_SOURCE,
            )
        else:
            parts.append((origins, "origins of subscriptions"))
        need = sum(count for count, _ in parts)
        self._size("max_replication_slots", lambda _: need, _sum(*parts), _PUBLISHER_SOURCE)

    def _workers(self, logical: _ByClass) -> None:
        autovacuum, parallel = self._by_class("autovacuum_max_workers"), self._by_class("max_parallel_workers")
        hardware = self._demand.hardware
        if hardware is None:
            floor = min(self._classes, key=lambda h: (h.vcpu, h.memory_bytes))
            why = f"{logical(floor)} logical + autovacuum + parallel workers; class unknown, so enough on every class"
        else:
            counts = [(logical, "logical"), (autovacuum, "autovacuum"), (parallel, "parallel workers")]
            why = _sum(*((count(hardware), label) for count, label in counts))
        self._size("max_worker_processes", lambda h: logical(h) + autovacuum(h) + parallel(h), why, _WORKERS_SOURCE)
        if self._demand.major >= versions.AUTOVACUUM_WORKER_SLOTS_SINCE and "autovacuum_worker_slots" in self._defaults:
            self._note(
                "max_worker_processes counts autovacuum_max_workers; on 18 it is dynamic and may grow up to"
                " autovacuum_worker_slots: raise max_worker_processes with it"
            )

    def _keep_size(self) -> None:
        name, demand = "max_slot_wal_keep_size", self._demand
        default = self._defaults.get(name)
        if default is None:
            self._missing(name)
            return
        if name in demand.overrides:
            self._asked(name, "asked for: a slot that holds more MB of WAL is lost", _ASKED_SOURCE)
            return
        unlimited = default.value in (None, "", "-1")
        if not unlimited:
            self._keep(name, "kept: a slot that holds more MB of WAL is lost", _KEEP_SOURCE)
            return
        if not demand.slots:
            self._keep(name, "left unlimited: no slot is planned", _KEEP_SOURCE)
            return
        if demand.storage_gib is None or demand.topology == "aurora" or not default.is_modifiable:
            self._keep(name, "left unlimited: no slot is given up", _KEEP_SOURCE)
            filled = (
                "the cluster's volume grows, and is paid for,"
                if demand.topology == "aurora"
                else "the disk fills, until the server stops,"
            )
            self._note(f"{name} is unlimited: {filled} when a slot is not consumed; watch rdsrepl slot list")
            return
        bound = upper_bound(default.allowed_values)
        quarter_mb = demand.storage_gib * 1024 // 4
        value = max(_LEAST_SLOT_WAL_MB, quarter_mb)
        value = value if bound is None else min(value, bound)
        gb = f"{value / 1024:.1f}".removesuffix(".0")
        reason = f"a slot may hold {gb} GB; beyond it the slot is lost instead of the disk full"
        self._add(name, str(value), reason, _KEEP_SOURCE)

    def _slot_sync(self, physical: int) -> None:
        demand = self._demand
        if demand.topology == "aurora":
            if demand.slots:
                self._note("Aurora does not support slot synchronisation: slots live on the shared volume")
            return
        if demand.topology == "multi_az_cluster":
            if demand.slots:
                self._note(
                    "RDS itself copies slots to a Multi-AZ DB cluster's readers: sync_replication_slots is not needed"
                )
            return
        if not physical or not demand.slots:
            return
        if demand.major < versions.FAILOVER_SLOTS_SINCE:
            self._note("before 17 a promoted replica has none of the source's slots: create them there by hand")
            return
        override = demand.overrides.get("sync_replication_slots")
        if override is not None and not parse_boolean(override):
            self._asked("sync_replication_slots", "asked for: replicas get no copies of slots", _ASKED_SOURCE)
            return
        if not self._switch("sync_replication_slots", "copies failover slots to this standby", _SYNC_SOURCE):
            return
        override = demand.overrides.get("hot_standby_feedback")
        if not self._switch("hot_standby_feedback", "slot synchronisation needs it", _SYNC_SOURCE) and override:
            raise BadValue(
                f"hot_standby_feedback={override}, but slot synchronisation needs it",
                hint="leave it out, or add --set sync_replication_slots=0",
            )
        if "rds.logical_slot_sync_dbname" in demand.overrides:
            self._asked("rds.logical_slot_sync_dbname", "asked for: the sync worker's database", _ASKED_SOURCE)
        self._note("slots are synchronised by the replica: attach this group, or one like it, to each replica too")
        self._note(
            "synchronized_standby_slots, on the source, keeps consumers behind the replica; its value is the replica's"
            " physical slot, rds_<region>_db_<resource id>, known only once the replica exists"
        )

    def _explain(self) -> None:
        demand = self._demand
        if demand.subscriptions and demand.major >= versions.PARALLEL_APPLY_DEFAULT_SINCE:
            self._note(
                "subscriptions made on 18 apply large transactions in parallel: up to"
                " max_parallel_apply_workers_per_subscription workers more each, where max_logical_replication_workers"
                " leaves some free"
            )

    def _switch(self, name: str, why: str, source: str) -> bool:
        """Turn a boolean on where it is off; say whether it is on then."""
        default, override = self._defaults.get(name), self._demand.overrides.get(name)
        if default is None:
            self._missing(name)
            return False
        if override is not None:
            if parse_boolean(override):
                self._asked(name, why, source)
            return parse_boolean(override) is True
        if parse_boolean(default.value or ""):
            self._keep(name, f"already on: {why}", source)
            return True
        if not default.is_modifiable:
            self._note(f"{name} stays off: AWS lets nobody set it in this family")
            return False
        on = "1" if is_allowed("1", default.allowed_values, default.data_type) else "on"
        self._add(name, on, why, source)
        return True

    def _size(self, name: str, need: _ByClass, why: str, source: str) -> _ByClass:
        """Raise a number to what is needed; return what it comes to."""
        default, demand = self._defaults.get(name), self._demand
        if default is None:
            self._missing(name)
            return lambda _: _POSTGRESQL[name]
        if name in demand.overrides:
            self._check_enough(name, need, why)
            self._asked(name, f"asked for; needed: {why}", source)
            return self._by_class(name)
        if default.value and not formulas.is_readable(default.value):
            least = max(need(hardware) for hardware in self._classes)
            self._keep(name, f"its default cannot be read, and is left; needed: {why}", source)
            self._note(
                f"{name}: its default {default.value} cannot be read; if it is below {least}: --set {name}={least}"
            )
            return need
        floor = self._floor(name, need)
        if floor is None:
            self._keep(name, f"enough: {why}" if why else "enough", source)
            return self._by_class(name)
        bound = upper_bound(default.allowed_values)
        if bound is not None and floor > bound:
            raise BadValue(
                f"{name} would have to be {floor} ({why}), and AWS allows at most {bound}",
                hint="plan fewer slots, subscriptions or replicas, or a second cluster",
            )
        if not default.is_modifiable:
            raise BadValue(
                f"{name} would have to be {floor} ({why}), and AWS lets nobody set it here",
                hint="plan fewer slots, subscriptions or replicas, or a second cluster",
            )
        value = self._raised(name, default, need, floor)
        self._add(name, value, why, source)
        return lambda hardware: _number(value, hardware, floor)

    def _raised(self, name: str, default: Default, need: _ByClass, floor: int) -> str:
        """Return the value that closes the gap: a formula stays one, so that it still grows with the class."""
        text = default.value
        if text and formulas.is_formula(text):
            return formulas.raise_floor(text, floor)
        if len({need(hardware) for hardware in self._classes}) == 1:
            return str(floor)
        # The need grows with a class that is not known, and the value given would not.
        floor = max((need(h) for h in self._classes if need(h) > 2 * h.vcpu), default=0)
        return f"GREATEST({{DBInstanceVCPU*2}},{max(floor, _number(text, None, _POSTGRESQL[name]))})"

    def _floor(self, name: str, need: _ByClass) -> int | None:
        """Return the least number that, as a floor of the default, is enough on each class; None if it is already."""
        current = self._default_by_class(name)
        return max((need(h) for h in self._classes if current(h) < need(h)), default=None)

    def _check_enough(self, name: str, need: _ByClass, why: str) -> None:
        value, current = self._demand.overrides[name], self._by_class(name)
        short = [hardware for hardware in self._classes if current(hardware) < need(hardware)]
        if len(short) == len(self._classes):
            least = min(need(hardware) for hardware in short)
            raise BadValue(f"{name}={value} is not enough: {why}", hint=f"give at least {least}, or leave it out")
        if short:
            self._note(f"{name}={value} is enough on some classes only, and the class is not known: {why}")

    def _by_class(self, name: str) -> _ByClass:
        if name in self._demand.overrides:
            asked = self._demand.overrides[name]
            return lambda hardware: _or(formulas.evaluate(asked, hardware), _POSTGRESQL[name])
        return self._default_by_class(name)

    def _default_by_class(self, name: str) -> _ByClass:
        default = self._defaults.get(name)
        text = None if default is None else default.value
        if text and not formulas.is_readable(text):
            self._note(f"{name}: its default {text} cannot be read; {_POSTGRESQL[name]} is assumed")
        return lambda hardware: _number(text, hardware, _POSTGRESQL[name])

    def _asked(self, name: str, reason: str, source: str) -> None:
        value, default = self._demand.overrides[name], self._defaults[name]
        self._add(name, None if value == default.value else value, reason, source)

    def _keep(self, name: str, reason: str, source: str) -> None:
        self._add(name, None, reason, source)

    def _add(self, name: str, value: str | None, reason: str, source: str) -> None:
        default, hardware = self._defaults[name], self._demand.hardware
        evaluated = _evaluated(name, default.value, hardware)
        self._proposals[name] = Proposal(
            name=name,
            default=default.value,
            default_evaluated=evaluated,
            value=value,
            apply_type=default.apply_type,
            # ApplyMethod in the API's answers is no guide: it says pending-reboot for dynamic parameters, too.
            apply_method="immediate" if default.apply_type == "dynamic" else "pending-reboot",
            reason=reason,
            source=source,
            value_evaluated=evaluated if value is None else _evaluated(name, value, hardware),
        )

    def _missing(self, name: str) -> None:
        self._note(f"this family has no {name}: left out")

    def _note(self, text: str) -> None:
        self._notes.append(text)


def _number(text: str | None, hardware: Hardware | None, unset: int) -> int:
    """Return what a default comes to; UNSET where there is none, or it cannot be read or takes what is not known."""
    return _or(formulas.read(text, hardware) if text else None, unset)


def _or(value: int | None, unset: int) -> int:
    return unset if value is None else value


def _evaluated(name: str, text: str | None, hardware: Hardware | None) -> int | None:
    return formulas.read(text, hardware) if text else _POSTGRESQL.get(name)


def _sum(*parts: tuple[int, str]) -> str:
    """Return a sum in words: ``4 slots + 2 standbys + 2 spare = 8``; what is nought is left out."""
    shown = [f"{count} {label}" for count, label in parts if count]
    if len(shown) < 2:
        return "".join(shown) or "none planned"
    return f"{' + '.join(shown)} = {sum(count for count, _ in parts)}"
