"""The sizing of a parameter group: its rules as a table with their sources, and properties of every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.aws.engines import Topology
from rdsrepl.errors import BadValue
from rdsrepl.parameters import formulas
from rdsrepl.parameters.allowed_values import is_allowed, upper_bound
from rdsrepl.parameters.instance_classes import Hardware, all_hardware, hardware
from rdsrepl.parameters.sizing import SIZED_PARAMETERS, Default, Sizing, SizingRequest, propose

GIB = 1 << 30
COUNT = "0-262143"
MANUAL_PUBLISHER = "PostgreSQL manual 29.12, Publishers: slots = subscriptions that connect + table-sync reserve"
MANUAL_WALSENDERS = "PostgreSQL manual 29.12, Publishers: walsenders = slots + physical replicas"
MANUAL_ORIGINS = "PostgreSQL manual 29.12, Subscribers (18): max_active_replication_origins"
MANUAL_ORIGINS_17 = "PostgreSQL manual 17, 29.10, Subscribers: max_replication_slots counts origins"
MANUAL_WORKERS = "PostgreSQL manual 29.12, Subscribers: apply workers + table-sync workers"
MANUAL_KEEP = "PostgreSQL manual 19.6.1: max_slot_wal_keep_size in MB, -1 is unlimited"
MANUAL_SYNC = "PostgreSQL manual 47.2.3: hot_standby_feedback and sync_replication_slots on the standby"
AWS_SWITCH = "RDS user guide, logical replication: rds.logical_replication=1, static"
AWS_SUM = "Aurora user guide: max_worker_processes >= logical + autovacuum + parallel workers"
AWS_READERS = "RDS user guide, Multi-AZ DB clusters: a writer and two readers"
AWS_AURORA = "Aurora user guide, storage: readers share the writer's volume"


def family(topology: Topology, major: int) -> dict[str, Default]:
    """Return a family's defaults as the API reports them (values of the user guides, ``docs/sizing.md``)."""
    aurora = topology == "aurora"
    dollar = "$" if aurora else ""

    def static(value: str | None, values: str | None = COUNT) -> Default:
        return Default(value, "static", values, True, "integer")

    def dynamic(value: str | None, values: str | None = COUNT) -> Default:
        return Default(value, "dynamic", values, True, "integer")

    autovacuum = "GREATEST({DBInstanceClassMemory/64371566592},3)"
    found = {
        "rds.logical_replication": Default("0", "static", "0,1", True, "boolean"),
        "wal_level": Default(None, "static", None, False, "string"),
        "max_replication_slots": static("20", "5-262143"),
        "max_wal_senders": static("10" if aurora else "20" if major <= 15 else "35", "5-262143"),
        "max_logical_replication_workers": static(None),
        "max_sync_workers_per_subscription": dynamic(None),
        "max_worker_processes": static(f"GREATEST({dollar}{{DBInstanceVCPU*2}},8)"),
        "max_parallel_workers": dynamic(f"GREATEST({dollar}{{DBInstanceVCPU/2}},8)", "0-1024"),
        "autovacuum_max_workers": static(autovacuum) if major <= 17 else dynamic(autovacuum),
        "max_slot_wal_keep_size": dynamic(None if aurora else "-1", "-1-2147483647"),
        "hot_standby_feedback": Default("1" if aurora else None, "dynamic", "0,1", not aurora, "boolean"),
        "wal_sender_timeout": dynamic("30000", "0-3600000"),
        "log_statement": Default("none", "dynamic", "none,ddl,mod,all", True, "string"),
    }
    if major >= 17 and topology == "instance":
        found["sync_replication_slots"] = Default("0", "dynamic", "0,1", True, "boolean")
        found["rds.logical_slot_sync_dbname"] = Default("postgres", "dynamic", None, True, "string")
        found["synchronized_standby_slots"] = Default(None, "dynamic", None, True, "string")
    if major >= 18:
        found["max_active_replication_origins"] = static("20")
        found["autovacuum_worker_slots"] = static("LEAST(GREATEST({DBInstanceClassMemory/32185783296},16),32)")
    return found


def request(
    topology: Topology = "instance", major: int = 16, instance_class: str | None = None, **rest: Any
) -> SizingRequest:
    given: dict[str, Any] = {"slots": 0, "subscriptions": 0, "replicas": 0, "storage_gib": None, "overrides": {}}
    return SizingRequest(
        engine="aurora-postgresql" if topology == "aurora" else "postgres",
        topology=topology,
        major=major,
        hardware=hardware(instance_class) if instance_class else None,
        **{**given, **rest},
    )


def values(sizing: Sizing) -> dict[str, str | None]:
    return {proposal.name: proposal.value for proposal in sizing.proposals}


@dataclass(frozen=True)
class Case:
    topology: Topology
    major: int
    instance_class: str | None
    expected: Mapping[str, str | None]
    source: str
    slots: int = 0
    subscriptions: int = 0
    replicas: int = 0
    storage_gib: int | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.topology}-{self.major}-{self.instance_class}-{'-'.join(self.expected)}"


INSTANCE: Literal["instance"] = "instance"
MULTI: Literal["multi_az_cluster"] = "multi_az_cluster"
AURORA: Literal["aurora"] = "aurora"
SLOTS, SENDERS, ORIGINS = "max_replication_slots", "max_wal_senders", "max_active_replication_origins"
WORKERS, LOGICAL, SYNC = "max_worker_processes", "max_logical_replication_workers", "max_sync_workers_per_subscription"
KEEP, SWITCH = "max_slot_wal_keep_size", "rds.logical_replication"

CASES = [
    # rds.logical_replication, everywhere.
    Case(INSTANCE, 13, "db.m5.large", {SWITCH: "1"}, AWS_SWITCH, slots=1),
    Case(INSTANCE, 18, "db.m8g.large", {SWITCH: "1"}, AWS_SWITCH, slots=1),
    Case(MULTI, 15, "db.r6gd.large", {SWITCH: "1"}, AWS_SWITCH, slots=1),
    Case(AURORA, 17, "db.serverless", {SWITCH: "1"}, AWS_SWITCH, slots=1),
    # Slots: 20 by default, everywhere; slots + standbys + 2 for table synchronisation.
    Case(INSTANCE, 13, "db.m5.large", {SLOTS: None}, MANUAL_PUBLISHER, slots=18),
    Case(INSTANCE, 14, "db.m5.large", {SLOTS: "21"}, MANUAL_PUBLISHER, slots=19),
    Case(INSTANCE, 15, "db.m6g.large", {SLOTS: "24"}, MANUAL_PUBLISHER, slots=19, replicas=3),
    Case(INSTANCE, 16, "db.m6g.large", {SLOTS: None}, "no slot, no table-sync reserve", replicas=15),
    Case(MULTI, 16, "db.m6gd.large", {SLOTS: "21"}, AWS_READERS, slots=17),
    Case(MULTI, 17, "db.m6gd.large", {SLOTS: "23"}, AWS_READERS, slots=17, replicas=2),
    Case(AURORA, 16, "db.r6g.large", {SLOTS: None}, AWS_AURORA, slots=18, replicas=15),
    Case(INSTANCE, 16, None, {SLOTS: "26", SYNC: "5"}, MANUAL_PUBLISHER, slots=21, overrides={SYNC: "5"}),
    # Origins: in max_replication_slots up to 17, apart from 18 on.
    Case(INSTANCE, 17, "db.r7g.large", {SLOTS: "24"}, MANUAL_ORIGINS_17, slots=1, subscriptions=7),
    Case(AURORA, 14, "db.r6g.large", {SLOTS: None}, MANUAL_ORIGINS_17, subscriptions=6),
    Case(AURORA, 17, "db.r6g.large", {SLOTS: "21"}, MANUAL_ORIGINS_17, subscriptions=7),
    Case(INSTANCE, 18, "db.r8g.large", {SLOTS: None, ORIGINS: "21"}, MANUAL_ORIGINS, slots=1, subscriptions=7),
    Case(AURORA, 18, "db.r8g.large", {SLOTS: None, ORIGINS: None}, MANUAL_ORIGINS, subscriptions=6),
    # Walsenders: slots + standbys + 2 for table synchronisation + 2 spare; 20 up to 15, 35 from 16 on, Aurora 10.
    Case(INSTANCE, 15, "db.m5.large", {SENDERS: None}, MANUAL_WALSENDERS, slots=16),
    Case(INSTANCE, 15, "db.m5.large", {SENDERS: "21"}, MANUAL_WALSENDERS, slots=17),
    Case(INSTANCE, 16, "db.m5.large", {SENDERS: None}, MANUAL_WALSENDERS, slots=31),
    Case(INSTANCE, 16, "db.m5.large", {SENDERS: "37"}, MANUAL_WALSENDERS, slots=31, replicas=2),
    Case(MULTI, 15, "db.r6gd.large", {SENDERS: "26"}, AWS_READERS, slots=20),
    Case(AURORA, 15, "db.r6g.large", {SENDERS: None}, MANUAL_WALSENDERS, slots=6),
    Case(AURORA, 15, "db.r6g.large", {SENDERS: "14"}, AWS_AURORA, slots=10, replicas=5),
    # Apply and table-sync workers: PostgreSQL's 4 where the family leaves them unset.
    Case(INSTANCE, 13, "db.m5.4xlarge", {LOGICAL: None, SYNC: None}, MANUAL_WORKERS, subscriptions=1),
    Case(INSTANCE, 16, "db.m5.4xlarge", {LOGICAL: "6"}, MANUAL_WORKERS, subscriptions=2),
    Case(AURORA, 13, "db.r5.4xlarge", {LOGICAL: "18"}, MANUAL_WORKERS, subscriptions=6),
    Case(MULTI, 17, "db.m6gd.large", {LOGICAL: "20"}, MANUAL_WORKERS, subscriptions=4, overrides={SYNC: "4"}),
    # Background workers: 4 logical + 3 autovacuum + 8 parallel = 15 on small classes.
    Case(INSTANCE, 16, "db.t4g.micro", {WORKERS: "GREATEST({DBInstanceVCPU*2},15)"}, AWS_SUM, slots=1),
    Case(INSTANCE, 14, "db.m5.xlarge", {WORKERS: "GREATEST({DBInstanceVCPU*2},15)"}, AWS_SUM, slots=1),
    Case(INSTANCE, 14, "db.m5.2xlarge", {WORKERS: None}, AWS_SUM, slots=1),
    Case(AURORA, 15, "db.r6g.large", {WORKERS: "GREATEST(${DBInstanceVCPU*2},15)"}, AWS_SUM, slots=1),
    Case(INSTANCE, 16, "db.r6g.16xlarge", {WORKERS: None}, AWS_SUM, slots=1),
    Case(INSTANCE, 15, "db.x2iedn.32xlarge", {WORKERS: None}, AWS_SUM, slots=1),
    Case(
        INSTANCE,
        15,
        "db.x2iedn.32xlarge",
        {WORKERS: "GREATEST({DBInstanceVCPU*2},282)", LOGICAL: "150"},
        AWS_SUM,
        subscriptions=50,
    ),
    Case(INSTANCE, 17, "db.m7g.2xlarge", {WORKERS: "GREATEST({DBInstanceVCPU*2},23)"}, AWS_SUM, subscriptions=4),
    Case(AURORA, 16, "db.serverless", {WORKERS: "GREATEST(${DBInstanceVCPU*2},15)"}, AWS_SUM, slots=1),
    # 24 vCPU: 40 + 3 + 12 = 55 is above 48, so a floor of 40 + 3 + 8 = 51 is too low there, and up to 32 vCPU of
    # 32 GiB: 40 + 17 + 16 = 73.
    Case(
        INSTANCE,
        16,
        None,
        {WORKERS: "GREATEST({DBInstanceVCPU*2},73)"},
        AWS_SUM,
        overrides={LOGICAL: "40"},
    ),
    Case(
        INSTANCE,
        18,
        "db.m8g.large",
        {WORKERS: "GREATEST({DBInstanceVCPU*2},20)", "autovacuum_max_workers": "8"},
        AWS_SUM,
        overrides={"autovacuum_max_workers": "8"},
    ),
    # The WAL that a slot may retain.
    Case(INSTANCE, 16, "db.m5.large", {KEEP: "25600"}, MANUAL_KEEP, slots=1, storage_gib=100),
    Case(MULTI, 16, "db.m6gd.large", {KEEP: "4096"}, MANUAL_KEEP, slots=1, storage_gib=10),
    Case(INSTANCE, 13, "db.m5.large", {KEEP: None}, MANUAL_KEEP, slots=1),
    Case(INSTANCE, 13, "db.m5.large", {KEEP: None}, MANUAL_KEEP, storage_gib=100),
    Case(AURORA, 16, "db.r6g.large", {KEEP: None}, MANUAL_KEEP, slots=1, storage_gib=100),
    Case(AURORA, 16, "db.r6g.large", {KEEP: "1000"}, MANUAL_KEEP, slots=1, overrides={KEEP: "1000"}),
    # Slot synchronisation.
    Case(
        INSTANCE,
        17,
        "db.m7g.large",
        {"sync_replication_slots": "1", "hot_standby_feedback": "1"},
        MANUAL_SYNC,
        slots=1,
        replicas=1,
    ),
    Case(
        INSTANCE,
        18,
        None,
        {"sync_replication_slots": "1", "hot_standby_feedback": "1", "rds.logical_slot_sync_dbname": "orders"},
        MANUAL_SYNC,
        slots=2,
        replicas=1,
        overrides={"rds.logical_slot_sync_dbname": "orders"},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_rules(case: Case) -> None:
    wanted = request(
        case.topology,
        case.major,
        case.instance_class,
        slots=case.slots,
        subscriptions=case.subscriptions,
        replicas=case.replicas,
        storage_gib=case.storage_gib,
        overrides=case.overrides,
    )
    found = values(propose(wanted, family(case.topology, case.major)))
    assert {name: found[name] for name in case.expected} == case.expected, case.source


def test_the_table_is_large_enough_and_covers_every_family() -> None:
    assert len(CASES) >= 30
    assert {case.major for case in CASES if case.topology == INSTANCE} == set(range(13, 19))
    assert {case.major for case in CASES if case.topology == AURORA} == set(range(13, 19))


@pytest.mark.parametrize(("topology", "major"), [(INSTANCE, 16), (MULTI, 17), (AURORA, 17), (INSTANCE, 18)])
def test_slots_are_synchronised_only_on_instances_from_17_on(topology: Topology, major: int) -> None:
    sizing = propose(request(topology, major, slots=1, replicas=1), family(topology, major))
    assert ("sync_replication_slots" in values(sizing)) == (topology == INSTANCE and major >= 17)
    expected = {
        INSTANCE: "synchronized_standby_slots" if major >= 17 else "before 17",
        MULTI: "RDS copies slots",
        AURORA: "Aurora",
    }
    assert any(expected[topology] in note for note in sizing.notes)


def test_slot_synchronisation_can_be_turned_off_but_not_broken() -> None:
    asked = request(major=17, slots=1, replicas=1, overrides={"sync_replication_slots": "0"})
    assert "hot_standby_feedback" not in values(propose(asked, family(INSTANCE, 17)))
    with pytest.raises(BadValue, match="slot synchronisation requires it"):
        propose(replace(asked, overrides={"hot_standby_feedback": "0"}), family(INSTANCE, 17))


def test_proposals_are_ordered_and_have_an_apply_method() -> None:
    sizing = propose(
        request(major=18, instance_class="db.m8g.large", slots=30, overrides={"wal_sender_timeout": "60000"}),
        family(INSTANCE, 18),
    )
    names = [proposal.name for proposal in sizing.proposals]
    assert names == [name for name in SIZED_PARAMETERS if name in names] + ["wal_sender_timeout"]
    for proposal in sizing.proposals:
        assert (proposal.apply_type == "dynamic") == (proposal.apply_method == "immediate")
        assert proposal.reason
        assert proposal.source
    workers = next(proposal for proposal in sizing.proposals if proposal.name == WORKERS)
    assert (workers.default_evaluated, workers.value_evaluated) == (8, 15)
    assert workers.reason == "4 logical + 3 autovacuum + 8 parallel workers = 15"
    slots = next(proposal for proposal in sizing.proposals if proposal.name == SLOTS)
    assert slots.reason == "30 slots + 2 table-sync reserve = 32"
    assert any("autovacuum_worker_slots" in note for note in sizing.notes)


def test_a_copied_groups_values_are_kept_or_raised() -> None:
    group = family(INSTANCE, 16)
    group |= {SLOTS: replace(group[SLOTS], value="50"), SENDERS: replace(group[SENDERS], value="12")}
    group |= {KEEP: replace(group[KEEP], value="9000"), WORKERS: replace(group[WORKERS], value="12")}
    group |= {SWITCH: replace(group[SWITCH], value="1")}
    found = values(propose(request(instance_class="db.m5.large", slots=40, storage_gib=100), group))
    assert found == {SWITCH: None, SLOTS: None, SENDERS: "44", LOGICAL: None, SYNC: None, WORKERS: "15", KEEP: None}


def test_for_an_unknown_class_a_constant_becomes_a_formula_that_is_sufficient_on_each() -> None:
    group = family(INSTANCE, 16)
    group |= {WORKERS: replace(group[WORKERS], value="12")}
    assert values(propose(request(slots=1), group))[WORKERS] == "GREATEST({DBInstanceVCPU*2},15)"


def test_a_parameter_that_a_family_lacks_is_skipped_with_a_note() -> None:
    group = family(INSTANCE, 18)
    for name in (ORIGINS, KEEP, SYNC, "sync_replication_slots"):
        del group[name]
    sizing = propose(request(major=18, slots=1, replicas=1, subscriptions=9), group)
    for name in (ORIGINS, KEEP, SYNC, "sync_replication_slots"):
        assert any(name in note for note in sizing.notes)
    assert values(sizing)[LOGICAL] == "27"


def test_a_group_without_logical_replication_is_refused() -> None:
    group = family(AURORA, 16)
    del group[SWITCH]
    with pytest.raises(BadValue, match=r"no rds\.logical_replication") as caught:
        propose(request(AURORA), group)
    assert caught.value.hint
    assert "--kind cluster" in caught.value.hint


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"max_replicaton_slots": "30"}, "no parameter max_replicaton_slots"),
        ({"wal_level": "logical"}, "wal_level is not modifiable"),
        ({SLOTS: "4"}, "cannot be '4'"),
        ({SLOTS: "many"}, "cannot be 'many'"),
        ({SLOTS: "11"}, "11 is not enough: 10 slots"),
        ({SENDERS: "13"}, "13 is not enough"),
        ({LOGICAL: "5"}, "5 is not enough"),
        ({WORKERS: "16"}, "16 is not enough: 6 logical"),
        ({WORKERS: "GREATEST({DBInstanceVCPU*2},8)"}, "not enough"),
        ({SWITCH: "0"}, "turns logical replication off"),
        ({"log_statement": "everything"}, "cannot be 'everything'"),
    ],
)
def test_a_wrong_override_is_refused(overrides: dict[str, str], message: str) -> None:
    wanted = request(instance_class="db.m5.large", slots=10, subscriptions=2, overrides=overrides)
    with pytest.raises(BadValue, match=message) as caught:
        propose(wanted, family(INSTANCE, 16))
    assert caught.value.hint
    assert next(iter(overrides)) in str(caught.value)


def test_a_misspelt_parameter_gets_a_suggestion() -> None:
    with pytest.raises(BadValue) as caught:
        propose(request(overrides={"max_replicaton_slots": "30"}), family(INSTANCE, 16))
    assert caught.value.hint == "did you mean max_replication_slots?"


def test_an_override_below_the_default_is_accepted_if_sufficient() -> None:
    found = values(propose(request(slots=1, overrides={SLOTS: "5"}), family(INSTANCE, 16)))
    assert found[SLOTS] == "5"


def test_an_override_that_is_sufficient_on_some_classes_only_is_noted() -> None:
    sizing = propose(request(slots=1, overrides={WORKERS: "20"}), family(INSTANCE, 16))
    assert any("sufficient on some instance classes only" in note for note in sizing.notes)
    with pytest.raises(BadValue, match="not enough"):
        propose(request(slots=1, overrides={WORKERS: "12"}), family(INSTANCE, 16))


def test_a_required_value_above_the_allowed_range_is_refused() -> None:
    group = family(INSTANCE, 16)
    group |= {SLOTS: replace(group[SLOTS], allowed_values="5-30")}
    with pytest.raises(BadValue, match=r"max_replication_slots must be 42 .* at most 30"):
        propose(request(slots=40), group)


def test_a_required_value_that_is_not_modifiable_is_refused() -> None:
    group = family(INSTANCE, 16)
    group |= {SLOTS: replace(group[SLOTS], is_modifiable=False)}
    assert values(propose(request(slots=1), group))[SLOTS] is None
    with pytest.raises(BadValue, match="max_replication_slots must be 42"):
        propose(request(slots=40), group)


@pytest.mark.parametrize("numbers", [{"slots": -1}, {"subscriptions": -1}, {"replicas": -2}, {"storage_gib": -1}])
def test_a_negative_number_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(BadValue, match="is negative"):
        propose(replace(request(), **numbers), family(INSTANCE, 16))


def test_engine_and_topology_must_agree() -> None:
    with pytest.raises(BadValue, match="has no multi az cluster"):
        propose(replace(request(AURORA), topology=MULTI), family(AURORA, 16))


# Properties of every result.

CLASSES = ["db.t3.micro", "db.m5.xlarge", "db.r6g.4xlarge", "db.r6i.32xlarge", "db.x2iedn.32xlarge", "db.m8g.48xlarge"]
REQUESTS = st.builds(
    request,
    st.sampled_from([INSTANCE, MULTI, AURORA]),
    st.integers(13, 18),
    st.sampled_from([None, *CLASSES]),
    slots=st.integers(0, 300),
    subscriptions=st.integers(0, 100),
    replicas=st.integers(0, 15),
    storage_gib=st.none() | st.integers(0, 65536),
)


def on(sizing: Sizing, group: Mapping[str, Default], name: str, what: Hardware) -> int:
    """Return the value of a parameter on a class after the proposals are applied."""
    text = values(sizing).get(name) or group[name].value
    if text is None:
        return {LOGICAL: 4, SYNC: 2}[name]
    value = formulas.evaluate(text, what)
    assert value is not None
    return value


def classes(wanted: SizingRequest) -> tuple[Hardware, ...]:
    return all_hardware() if wanted.hardware is None else (wanted.hardware,)


@given(REQUESTS)
def test_nothing_is_lowered(wanted: SizingRequest) -> None:
    group = family(wanted.topology, wanted.major)
    sizing = propose(wanted, group)
    for proposal in sizing.proposals:
        if proposal.value is None or proposal.name == KEEP:
            continue
        for what in classes(wanted):
            default = formulas.evaluate(proposal.default, what) if proposal.default else 0
            value = formulas.evaluate(proposal.value, what)
            assert value is not None
            assert default is not None
            assert value > default or (value == default and wanted.hardware is None)
        assert is_allowed(proposal.value, group[proposal.name].allowed_values, group[proposal.name].data_type)


@given(REQUESTS)
def test_worker_processes_are_at_least_the_sum(wanted: SizingRequest) -> None:
    group = family(wanted.topology, wanted.major)
    sizing = propose(wanted, group)
    for what in classes(wanted):
        parts = [LOGICAL, "autovacuum_max_workers", "max_parallel_workers"]
        assert on(sizing, group, WORKERS, what) >= sum(on(sizing, group, name, what) for name in parts)


@given(REQUESTS, st.sampled_from(["slots", "subscriptions", "replicas"]), st.integers(1, 50))
def test_a_larger_request_never_lowers_a_value(wanted: SizingRequest, what: str, more: int) -> None:
    group = family(wanted.topology, wanted.major)
    larger: dict[str, Any] = {what: getattr(wanted, what) + more}
    before, after = propose(wanted, group), propose(replace(wanted, **larger), group)
    names = [SLOTS, SENDERS, LOGICAL, WORKERS] + ([ORIGINS] if wanted.major >= 18 else [])
    for name in names:
        for hardware_ in classes(wanted):
            assert on(after, group, name, hardware_) >= on(before, group, name, hardware_)


# Formulas.


@pytest.mark.parametrize(
    ("text", "instance_class", "expected"),
    [
        ("8", None, 8),
        ("-1", None, -1),
        ("GREATEST({DBInstanceVCPU*2},8)", "db.m5.large", 8),
        ("GREATEST({DBInstanceVCPU*2},8)", "db.m5.4xlarge", 32),
        ("GREATEST(${DBInstanceVCPU*2},8)", "db.r6g.4xlarge", 32),
        ("GREATEST({DBInstanceVCPU}*2,8)", "db.r6g.4xlarge", 32),
        ("LEAST({DBInstanceClassMemory/9531392},5000)", "db.t3.micro", 112),
        ("LEAST({DBInstanceClassMemory/9531392},5000)", "db.r5.24xlarge", 5000),
        ("{DBInstanceClassMemory/32768}", "db.m5.large", 262144),
        ("SUM({DBInstanceClassMemory/12038},-50003)", "db.r6g.large", 1427136 - 50003),
        ("LEAST(GREATEST({DBInstanceClassMemory/32185783296},16),32)", "db.r6i.32xlarge", 32),
        ("greatest( {DBInstanceVCPU/2} , 8 )", "db.r6i.32xlarge", 64),
        ("SUM(1,2,3)", None, 6),
        ("-7/2", None, -3),
        ("GREATEST({DBInstanceVCPU*2},8)", None, None),
        ("GREATEST({AllocatedStorage/2},8)", "db.m5.large", None),
    ],
)
def test_formulas(text: str, instance_class: str | None, expected: int | None) -> None:
    assert formulas.evaluate(text, hardware(instance_class) if instance_class else None) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "on",
        "0.5",
        "8 8",
        "{DBInstanceVCPU",
        "DBInstanceVCPU*2",
        "{dbinstancevcpu}",
        "{Cores}",
        "GREATEST()",
        "GREATEST(1,)",
        "GREATEST(1",
        "GREATEST 1",
        "MAX(1,2)",
        "1/0",
        "{1+2}",
        "-{DBInstanceVCPU}",
        "{" * 100,
        "9" * 5000,
        "{" * 40 + "1" + "}" * 40,
        "٣",
    ],
)
def test_a_text_that_is_not_a_formula_is_refused(text: str) -> None:
    with pytest.raises(BadValue) as caught:
        formulas.evaluate(text, hardware("db.m5.large"))
    assert "GREATEST({DBInstanceVCPU*2},8)" in (caught.value.hint or "")


def test_variables() -> None:
    assert formulas.variables("LEAST({DBInstanceClassMemory/9},{DBInstanceVCPU*2},5)") == {
        "DBInstanceClassMemory",
        "DBInstanceVCPU",
    }
    assert formulas.variables("5") == frozenset()


FORMULAS = st.recursive(
    st.integers(-1000, 10**6).map(str)
    | st.sampled_from(["{DBInstanceVCPU*2}", "${DBInstanceVCPU}", "{DBInstanceClassMemory/9531392}"]),
    lambda inner: st.tuples(st.sampled_from(["GREATEST", "LEAST", "SUM"]), st.lists(inner, min_size=1, max_size=3)).map(
        lambda made: f"{made[0]}({','.join(made[1])})"
    ),
    max_leaves=8,
)


@given(FORMULAS, st.integers(0, 10**6), st.sampled_from(CLASSES))
def test_raise_floor_changes_only_the_floor(text: str, floor: int, instance_class: str) -> None:
    what = hardware(instance_class)
    before, after = formulas.evaluate(text, what), formulas.evaluate(formulas.raise_floor(text, floor), what)
    assert before is not None
    assert after is not None
    assert after >= floor
    # A number in GREATEST is only raised to the floor, so both are equal where the old value is higher.
    assert after == max(before, floor)


# Instance classes.


@pytest.mark.parametrize(
    ("instance_class", "vcpu", "gib"),
    [
        ("db.t3.micro", 2, 1),
        ("db.t3.small", 2, 2),
        ("db.t4g.medium", 2, 4),
        ("db.t4g.large", 2, 8),
        ("db.t3.2xlarge", 8, 32),
        ("db.m5.large", 2, 8),
        ("db.m5d.24xlarge", 96, 384),
        ("db.m6gd.8xlarge", 32, 128),
        ("db.m7i.48xlarge", 192, 768),
        ("db.m8g.xlarge", 4, 16),
        ("db.c6gd.medium", 1, 2),
        ("db.r5b.12xlarge", 48, 384),
        ("db.r6id.32xlarge", 128, 1024),
        ("db.r7g.16xlarge", 64, 512),
        ("db.r8g.48xlarge", 192, 1536),
        ("db.x2g.large", 2, 32),
        ("db.x2idn.24xlarge", 96, 1536),
        ("db.x2iedn.xlarge", 4, 128),
        ("db.x2iedn.32xlarge", 128, 4096),
        ("db.z1d.3xlarge", 12, 96),
        ("DB.M5.LARGE", 2, 8),
    ],
)
def test_instance_classes(instance_class: str, vcpu: int, gib: int) -> None:
    assert hardware(instance_class) == Hardware(vcpu, gib * GIB)


@pytest.mark.parametrize(
    "instance_class",
    [
        "db.serverless",
        "",
        "m5.large",
        "db.m5",
        "db.m5.huge",
        "db.q9.large",
        "db.m4.large",
        "db.m5.medium",
        "db.m5.micro",
        "db.r6i.4xlarge.tpc2.mem2x",
        "db.x9z.large",
    ],
)
def test_an_unknown_class(instance_class: str) -> None:
    assert hardware(instance_class) is None


def test_every_class_is_in_all_hardware() -> None:
    assert all(hardware(name) in all_hardware() for name in CLASSES)


# Allowed values.


@pytest.mark.parametrize(
    ("value", "allowed_values", "data_type", "expected"),
    [
        ("5", "5-262143", "integer", True),
        ("262143", "5-262143", "integer", True),
        ("4", "5-262143", "integer", False),
        ("262144", "5-262143", None, False),
        ("5.5", "5-262143", "integer", False),
        ("5.5", "5-262143", None, False),
        ("25GB", "5-262143", "integer", False),
        ("", "5-262143", "integer", False),
        ("1", "0,1", "boolean", True),
        ("on", "0,1", "boolean", False),
        ("2", "0,1", "boolean", False),
        ("-1", "-1-2147483647", "integer", True),
        ("-2", "-1-2147483647", "integer", False),
        ("-7", "-10--5", "integer", True),
        ("-4", "-10--5", "integer", False),
        ("0", "0,30-3600", "integer", True),
        ("29", "0,30-3600", "integer", False),
        ("0.5", "0.0-1.0", "float", True),
        ("0.5", "0-1", "float", True),
        ("1.5", "0.0-1.0", None, False),
        ("ddl", "none,ddl,mod,all", "string", True),
        ("DDL", "none,ddl,mod,all", "string", False),
        ("auto_explain,pg_cron", "auto_explain,orafce,pg_cron", "list", True),
        ("auto_explain,timescale", "auto_explain,orafce,pg_cron", "list", False),
        ("GREATEST({DBInstanceVCPU*2},8)", "8-262143", "integer", True),
        ("GREATEST({Cores*2},8)", "8-262143", "integer", False),
        ("GREATEST(4,5)", "8-262143", "integer", False),
        ("GREATEST(4,50)", "8-262143", "integer", True),
        ("{DBInstanceVCPU}", "none,ddl", "string", False),
        ("anything", None, "string", True),
        ("anything", None, None, True),
        ("anything", None, "integer", False),
        ("12", None, "integer", True),
    ],
)
def test_allowed_values(value: str, allowed_values: str | None, data_type: str | None, expected: bool) -> None:
    assert is_allowed(value, allowed_values, data_type) is expected


@pytest.mark.parametrize(
    ("allowed_values", "expected"),
    [
        ("5-262143", 262143),
        ("-1-2147483647", 2147483647),
        ("0,30-3600", 3600),
        ("0,1", 1),
        ("none,ddl", None),
        (None, None),
        ("-10--5", -5),
        ("0.0-1.0", 1),
    ],
)
def test_upper_bounds(allowed_values: str | None, expected: int | None) -> None:
    assert upper_bound(allowed_values) == expected
