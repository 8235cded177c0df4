"""Aggregation by shard loses nothing and keeps the order of each key; the consumer works as a KCL."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdsrepl.aws.streams import Shard as ListedShard
from rdsrepl.tail.sinks.aggregation import aggregated
from rdsrepl.tail.sinks.batching import Limits
from rdsrepl.tail.sinks.by_shard import Aggregate, ShardDispatch
from rdsrepl.tail.sinks.shard_map import ShardMap
from tests.workloads.kcl_consumer import delivered, of_record
from tests.workloads.kinesis_server import Shard, hash_key, merge, reshard, shard_for, shards_of, split


def map_of(shards: list[Shard]) -> ShardMap:
    names = [shard.name for shard in shards]
    return ShardMap.of(
        ListedShard(s.name, tuple(names[n] for n in s.parents), s.is_open, s.first, s.last - 1) for s in shards
    )


@dataclass
class World:
    """A stream in memory that refuses, loses answers and is resharded at random; time is a number."""

    seed: int
    limits: Limits
    resharding: float
    shards: list[Shard] = field(default_factory=lambda: shards_of(2))
    now: float = 0.0
    in_flight: list[list[Aggregate]] = field(default_factory=list)
    asked: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.listed = map_of(self.shards)
        self.dispatch = ShardDispatch(self.limits, self.listed)

    def step(self, *, flush: bool = False) -> None:
        self.now += self.random.random() / 20
        if self.random.random() < self.resharding:
            reshard(self.shards, self.random)
        if self.asked:
            self.answer_map()
        elif self.in_flight and self.random.random() < 0.5:
            self.answer(self.in_flight.pop(self.random.randrange(len(self.in_flight))))
        elif entries := self.dispatch.take(self.now, flush=flush):
            assert len(entries) <= self.limits.records
            sent = [entry.shard_id for one in (*self.in_flight, entries) for entry in one if entry.shard_id]
            assert len(set(sent)) == len(sent), "one in flight for each shard"
            self.in_flight.append(entries)
        elif self.dispatch.wants_map(self.now):
            assert not self.in_flight
            self.asked = True

    def answer(self, entries: list[Aggregate]) -> None:
        again: dict[int, float] = {}
        stored = [""] * len(entries)
        for position in self.random.sample(range(len(entries)), len(entries)):  # PutRecords guarantees no order
            chance = self.random.random()
            if chance < 0.25:
                again[position] = self.now + self.random.random()
            if chance < 0.2:
                continue
            shard = self.store(entries[position])
            if position not in again:  # otherwise it was stored, and the answer was lost
                stored[position] = shard
        self.dispatch.answered(entries, again, stored, self.now)

    def store(self, aggregate: Aggregate) -> str:
        entry = json.loads(aggregate.json())
        shard = shard_for(self.shards, int(entry["ExplicitHashKey"]))
        shard.records.append((entry["PartitionKey"], base64.b64decode(entry["Data"])))
        return shard.name

    def answer_map(self) -> None:
        self.asked = False
        chance = self.random.random()
        if chance < 0.2:
            self.dispatch.map_failed(self.now + 0.1)
        else:
            if chance > 0.4:  # otherwise ListShards lags, or shows one of two new shards
                hidden = self.random.randrange(3) if chance > 0.7 else 0
                self.listed = map_of(self.shards[: max(1, len(self.shards) - hidden)])
            self.dispatch.reshard(self.listed, self.now)


@given(
    seed=st.integers(0, 1 << 30),
    batches=st.lists(st.lists(st.integers(0, 9), max_size=30), min_size=4, max_size=12),
    size=st.sampled_from([60, 150, 50_000]),
    resharding=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_nothing_is_lost_or_out_of_order_while_the_stream_is_resharded(
    seed: int, batches: list[list[int]], size: int, resharding: float
) -> None:
    world = World(seed, Limits(records=3, request_bytes=2000, linger_seconds=0.01, aggregate_bytes=size), resharding)
    sent: list[tuple[str, bytes]] = []
    ends = [0]
    for number, keys in enumerate(batches, 1):
        records = [(f"k{key}", f"{number}.{position}".encode()) for position, key in enumerate(keys)]
        sent += records
        ends.append(len(sent))
        world.dispatch.accept(number, [(key.encode(), data) for key, data in records], world.now)
        for _ in range(4):
            world.step()
            assert set(sent[: ends[world.dispatch.durable]]) <= set(delivered(world.shards))
    world.resharding = min(world.resharding, 0.05)
    for _ in range(20_000):
        if world.dispatch.durable == len(batches):
            break
        world.step(flush=True)
    assert world.dispatch.durable == len(batches) and world.dispatch.pending_bytes == 0
    arrived = list(dict.fromkeys(delivered(world.shards)))
    assert sorted(arrived) == sorted(sent)
    for key in {key for key, _ in sent}:
        assert [d for k, d in arrived if k == key] == [d for k, d in sent if k == key]


def test_only_what_consumers_discard_is_sent_again() -> None:
    shards = shards_of(1)
    dispatch = ShardDispatch(Limits(linger_seconds=0.0), map_of(shards))
    dispatch.accept(1, [(f"k{n}".encode(), b"x") for n in range(100)], 0.0)
    split(shards, 0)
    (whole,) = dispatch.take(0.0)
    entry = json.loads(whole.json())
    stored = shard_for(shards, int(entry["ExplicitHashKey"]))
    kept = {key for key, _ in of_record(stored, entry["PartitionKey"], base64.b64decode(entry["Data"]))}
    dispatch.accept(2, [(b"k0", b"later")], 0.0)
    dispatch.answered([whole], {}, [stored.name], 0.0)
    assert dispatch.take(1.0) == [], "nothing is sent by a map that is out of date"
    assert dispatch.wants_map(1.0) and not dispatch.wants_map(1.0)
    assert dispatch.reshard(map_of(shards), 1.0) == 100 - len(kept) > 0
    again = {key.decode() for entry in dispatch.take(1.0) for key, data, _ in entry.records if data == b"x"}
    assert again == {f"k{n}" for n in range(100)} - kept


def test_a_shard_that_is_not_listed_yet_gets_nothing_unseen() -> None:
    """One child of a split is listed: keys of the other one belong to no shard, and are looked at again."""
    shards = shards_of(2)
    split(shards, 0)
    partial = map_of(shards[:3])
    assert [shard or None for shard in partial.open_ids] == [shards[2].name, None, shards[1].name]
    assert map_of(shards[1:2]).open_ids == ("", shards[1].name)
    dispatch = ShardDispatch(Limits(500, 5 << 20, 0.0, 50_000), partial)
    keys = [f"k{number}".encode() for number in range(50)]
    dispatch.accept(1, [(key, b"x") for key in keys], 0.0)
    for aggregate in dispatch.take(1.0):
        shard = next(one for one in shards if one.name == aggregate.shard_id) if aggregate.shard_id else shards[3]
        assert all(shard.first <= hash_key(key.decode()) < shard.last for key, _, _ in aggregate.records)


def test_a_merge_discards_nothing() -> None:
    shards = shards_of(2)
    dispatch = ShardDispatch(Limits(linger_seconds=0.0), map_of(shards))
    dispatch.accept(1, [(f"k{n}".encode(), b"x") for n in range(100)], 0.0)
    merge(shards, 0, 1)
    entries = dispatch.take(0.0)
    dispatch.answered(entries, {}, [shards[2].name] * 2, 0.0)
    assert dispatch.wants_map(0.0) and dispatch.reshard(map_of(shards), 0.0) == 0
    assert dispatch.durable == 1 and dispatch.pending_bytes == 0


def test_the_first_half_of_a_refused_aggregate_is_sent_again_when_it_is_due() -> None:
    dispatch = ShardDispatch(Limits(linger_seconds=0.01), map_of(shards_of(1)))
    dispatch.accept(1, [(b"k", b"1"), (b"l", b"2")], 0.0)
    assert dispatch.take(0.005) == [] and dispatch.due_in(0.005) == pytest.approx(0.005)
    (first,) = dispatch.take(0.01)
    dispatch.accept(2, [(b"k", b"3")], 0.02)
    assert dispatch.due_in(0.5) is None, "one in flight"
    dispatch.answered([first], {0: 1.0}, [""], 0.5)
    assert dispatch.take(0.9, flush=True) == [] and dispatch.due_in(0.9) == pytest.approx(0.1)
    (half,) = dispatch.take(1.0)
    assert half.records == [(b"k", b"1", 1)] and dispatch.durable == 0
    dispatch.answered([half], {}, [half.shard_id], 1.0)
    (rest,) = dispatch.take(1.0)
    assert rest.records == [(b"l", b"2", 1), (b"k", b"3", 2)] and dispatch.durable == 0
    dispatch.answered([rest], {}, [rest.shard_id], 1.0)
    assert dispatch.durable == 2 and dispatch.pending_bytes == 0


def test_a_single_record_is_not_aggregated() -> None:
    dispatch = ShardDispatch(Limits(linger_seconds=0.0), map_of(shards_of(3)))
    dispatch.accept(1, [("ключ".encode(), b"data")], 0.0)
    (only,) = dispatch.take(0.0)
    assert json.loads(only.json()) == {
        "Data": base64.b64encode(b"data").decode(),
        "PartitionKey": "ключ",
        "ExplicitHashKey": str(hash_key("ключ")),
    }


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=300), st.binary(max_size=300) | st.integers(4000, 40_000).map(bytes)),
        min_size=2,
        max_size=30,
    )
)
def test_the_official_library_and_a_kcl_read_the_same(pairs: list[tuple[str, bytes]]) -> None:
    from aws_kinesis_agg.deaggregator import deaggregate_records

    records = [(key.encode("utf-8", "replace"), data, 0) for key, data in pairs]
    expected = [(key.decode(), data) for key, data, _ in records]
    data = aggregated(records)
    outer = dict.fromkeys(
        ("eventID", "eventSource", "eventVersion", "eventName", "invokeIdentityArn", "awsRegion", "eventSourceARN"), ""
    )
    event = {"data": base64.b64encode(data), "partitionKey": "a", "sequenceNumber": "1", "kinesisSchemaVersion": "1.0",
             "approximateArrivalTimestamp": 0}  # fmt: skip
    parts = [one["kinesis"] for one in deaggregate_records([{**outer, "kinesis": event}])]
    assert [(part["partitionKey"], base64.b64decode(part["data"])) for part in parts] == expected
    (everything,) = shards_of(1)
    assert list(of_record(everything, "a", data)) == expected
