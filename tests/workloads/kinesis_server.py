"""A local Kinesis API that fails like the real one: for some records, for a time, at limits, after it stored them.

Speaks the JSON protocol over HTTP/1.1, keeps what it accepts in arrival order, and is fast enough to measure a client
with (``null``: accepts and forgets). Run as ``python -m tests.workloads.kinesis_server``, or in a thread (``StandIn``).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

REGION = "eu-west-1"
_HASHES = 1 << 128
_EXPLICIT = re.compile(rb'"ExplicitHashKey":"(\d+)"')
# A result of PutRecords, as long as those of AWS.
_STORED = b'{"SequenceNumber":"%056d","ShardId":"shardId-000000000000"}' % 1
_PARENTS = ("ParentShardId", "AdjacentParentShardId")
#: how many shards a page of ListShards has; AWS's default is 1,000.
_PAGE = 100


@dataclass
class Faults:
    """Which faults occur, and how often.

    Attributes:
        partial: the share of records that are refused, one by one.
        server_error: the share of requests that end in a 500.
        cut: the share of requests that are carried out and never answered.
        slow_seconds: how long each answer takes.
        shard_limits: whether a shard takes no more than 1,000 records and 1 MiB a second.
        down: whether requests are cut off without being carried out.
        code: answered to every PutRecords instead of doing it.
        page: answered to everything, by status and body, as a server does that is no Kinesis.
        pages: the same for the next PutRecords, one each.
        null: accept and forget.
        expire_iterators: whether now and then a read finds its iterator too old.
        read_limits: whether a shard answers no more than five reads a second.
        throttled_reads: the share of reads that are refused, as when other readers use the limits of the shard.
        expired_keys: access keys that are no longer good.
        hidden_shards: how many of the newest shards ListShards does not show yet.
        read_records: how many records an answer of GetRecords has.
    """

    partial: float = 0.0
    server_error: float = 0.0
    cut: float = 0.0
    slow_seconds: float = 0.0
    shard_limits: bool = False
    down: bool = False
    code: str | None = None
    page: tuple[int, bytes] | None = None
    pages: list[tuple[int, bytes]] = field(default_factory=list)
    null: bool = False
    expire_iterators: bool = False
    read_limits: bool = False
    throttled_reads: float = 0.0
    expired_keys: frozenset[str] = frozenset()
    hidden_shards: int = 0
    read_records: int = 3


@dataclass
class Shard:
    """One shard: its range of hash keys, its records as (partition key, data), and when each came."""

    number: int
    first: int
    last: int
    parents: tuple[int, ...] = ()
    is_open: bool = True
    records: list[tuple[str, bytes]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    second: int = 0
    taken: int = 0
    taken_bytes: int = 0
    reads: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"shardId-{self.number:012d}"

    def has_room(self, size: int) -> bool:
        now = int(time.monotonic())
        if now != self.second:
            self.second, self.taken, self.taken_bytes = now, 0, 0
        if self.taken >= 1000 or self.taken_bytes + size > 1 << 20:
            return False
        self.taken += 1
        self.taken_bytes += size
        return True


def shards_of(count: int) -> list[Shard]:
    """Return the open shards of a new stream."""
    width = _HASHES // count
    return [Shard(n, n * width, _HASHES if n == count - 1 else (n + 1) * width) for n in range(count)]


def split(shards: list[Shard], number: int) -> None:
    """Split a shard in the middle: it is closed and keeps its records; two child shards receive new ones."""
    parent = shards[number]
    middle = (parent.first + parent.last) // 2
    parent.is_open = False
    shards.append(Shard(len(shards), parent.first, middle, (number,)))
    shards.append(Shard(len(shards), middle, parent.last, (number,)))


def merge(shards: list[Shard], number: int, adjacent: int) -> None:
    """Merge a shard with the one after it: both are closed and keep their records; one child receives new ones."""
    first, second = shards[number], shards[adjacent]
    assert first.last == second.first and first.is_open and second.is_open
    first.is_open = second.is_open = False
    shards.append(Shard(len(shards), first.first, second.last, (number, adjacent)))


def reshard(shards: list[Shard], chosen: random.Random) -> None:
    """Split a shard that was chosen at random, or merge two."""
    current = sorted((shard for shard in shards if shard.is_open), key=lambda shard: shard.first)
    if len(current) < 2 or (len(current) < 12 and chosen.random() < 0.5):
        split(shards, chosen.choice(current).number)
    else:
        position = chosen.randrange(len(current) - 1)
        merge(shards, current[position].number, current[position + 1].number)


def shard_for(shards: list[Shard], value: int) -> Shard:
    """Return the shard that takes a hash key."""
    return next(shard for shard in shards if shard.is_open and shard.first <= value < shard.last)


class KinesisServer:
    """The server, in its own thread, with the streams in ``streams``."""

    def __init__(self, *streams: str, shards: int = 4, record_kib: int = 1024, seed: int = 0) -> None:
        self.faults = Faults()
        self.status = "ACTIVE"
        self.record_kib = record_kib
        self.created_at = time.time()
        self.requests = 0
        #: how many records were refused, at random or at a shard's limit.
        self.refused = 0
        self.access_keys: set[str] = set()
        self.random = random.Random(seed)
        self.shards = {stream: shards_of(shards) for stream in streams}
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="kinesis", daemon=True)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> KinesisServer:
        self._thread.start()
        assert self._ready.wait(120)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(120)

    def records(self, stream: str) -> list[tuple[str, bytes]]:
        """Return the records, shard by shard, in the order of arrival."""
        return [record for shard in self.shards[stream] for record in shard.records]

    def split(self, stream: str, number: int) -> None:
        """Split a shard in the middle."""
        split(self.shards[stream], number)

    def merge(self, stream: str, number: int, adjacent: int) -> None:
        """Merge a shard with the one after it."""
        merge(self.shards[stream], number, adjacent)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=64 << 20))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                headers = {name.lower(): value for name, value in headers.items()}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                key = headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]
                self.access_keys.add(key)
                expired = _error("ExpiredTokenException", "The security token included in the request is expired")
                answer = (
                    expired
                    if key in self.faults.expired_keys
                    else await self._answer(headers.get("x-amz-target", "").rpartition(".")[2], body)
                )
                if answer is None:
                    break
                status, payload = answer
                writer.write(
                    b"HTTP/1.1 %d X\r\nContent-Type: application/x-amz-json-1.1\r\nx-amzn-RequestId: r-%d\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (status, self.requests, len(payload), payload)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, operation: str, body: bytes) -> tuple[int, bytes] | None:
        self.requests += 1
        faults = self.faults
        if faults.null and operation.startswith("PutRecord"):
            if operation == "PutRecord":
                return 200, b'{"SequenceNumber":"1"}'
            # A client that selects the shard reads where its record went.
            hashes = [int(found) for found in _EXPLICIT.findall(body)]
            (stream,) = self.shards
            if not hashes:
                results = b",".join([_STORED] * body.count(b'"PartitionKey":'))
                return 200, b'{"FailedRecordCount":0,"Records":[%b]}' % results
            stored = [
                {"SequenceNumber": "1", "ShardId": shard_for(self.shards[stream], value).name} for value in hashes
            ]
            return 200, b'{"FailedRecordCount":0,"Records":%b}' % json.dumps(stored).encode()
        if faults.slow_seconds:
            await asyncio.sleep(faults.slow_seconds)
        if faults.down:
            return None
        if faults.page is not None:
            return faults.page
        request = json.loads(body or b"{}")
        name = request.get("StreamName") or request.get("StreamARN", "").rpartition("/")[2]
        if name and "NextToken" in request:
            return _error("InvalidArgumentException", "NextToken and StreamName cannot be provided together.")
        token = request.get("ShardIterator") or request.get("NextToken") or ""
        name = name or token.partition(":")[0]
        if name not in self.shards:
            return _error("ResourceNotFoundException", f"Stream {name} under account 123456789012 not found.")
        if operation == "DescribeStreamSummary":
            return 200, json.dumps({"StreamDescriptionSummary": self._summary(name)}).encode()
        if operation == "DescribeStream":
            shards = [_listed(shard) for shard in self.shards[name]]
            return 200, json.dumps({"StreamDescription": self._summary(name) | {"Shards": shards}}).encode()
        if operation == "CreateStream":
            return _error("ResourceInUseException", f"Stream {name} under account 123456789012 already exists.")
        if operation == "PutRecord":
            answer = self._put(name, [request])
            return 200, json.dumps(answer["Records"][0]).encode()
        if operation != "PutRecords":
            return self._read(operation, name, request)
        if faults.pages:
            return faults.pages.pop(0)
        if faults.code is not None:
            return _error(faults.code, "no")
        if self.random.random() < faults.server_error:
            return 500, json.dumps({"__type": "InternalFailure"}).encode()
        answer = self._put(name, request["Records"])
        if self.random.random() < faults.cut:
            return None
        return 200, json.dumps(answer).encode()

    def _read(self, operation: str, name: str, request: dict[str, Any]) -> tuple[int, bytes]:
        shards = self.shards[name]
        if operation == "ListShards":
            shown = shards[: len(shards) - self.faults.hidden_shards]
            start = int(request.get("NextToken", f"{name}:0").rpartition(":")[2])
            listed: dict[str, Any] = {"Shards": [_listed(shard) for shard in shown[start : start + _PAGE]]}
            if start + _PAGE < len(shown):
                listed["NextToken"] = f"{name}:{start + _PAGE}"
            return 200, json.dumps(listed).encode()
        if operation == "GetShardIterator":
            shard = next(shard for shard in shards if shard.name == request["ShardId"])
            position = {"TRIM_HORIZON": 0, "LATEST": len(shard.records)}.get(request["ShardIteratorType"])
            if request["ShardIteratorType"] == "AT_TIMESTAMP":
                moment = request["Timestamp"] - time.time() + time.monotonic()
                position = sum(at < moment for at in shard.times)
            if position is None:
                position = int(request["StartingSequenceNumber"]) + 1
            return 200, json.dumps({"ShardIterator": f"{name}:{shard.number}:{position}"}).encode()
        if operation != "GetRecords":
            return _error("UnknownOperationException", operation)
        if self.faults.expire_iterators and self.random.random() < 0.3:
            return _error("ExpiredIteratorException", "Iterator expired.")
        _, number, start = request["ShardIterator"].split(":")
        shard, position = shards[int(number)], int(start)
        now = time.monotonic()
        shard.reads = [*(at for at in shard.reads if at > now - 1), now]
        if (self.faults.read_limits and len(shard.reads) > 5) or self.random.random() < self.faults.throttled_reads:
            return _error("ProvisionedThroughputExceededException", f"Rate exceeded for shard {shard.name}")
        rows = shard.records[position : position + self.faults.read_records]
        answer: dict[str, Any] = {
            "Records": [
                {
                    "SequenceNumber": str(position + offset),
                    "ApproximateArrivalTimestamp": time.time() - now + shard.times[position + offset],
                    "PartitionKey": key,
                    "Data": base64.b64encode(data).decode(),
                }
                for offset, (key, data) in enumerate(rows)
            ]
        }
        # The real one says how old the next record is.
        answer["MillisBehindLatest"] = len(shard.records) - position - len(rows)
        if shard.is_open or answer["MillisBehindLatest"]:
            answer["NextShardIterator"] = f"{name}:{number}:{position + len(rows)}"
        else:
            children = (_listed(child) for child in shards if int(number) in child.parents)
            answer["ChildShards"] = [
                {name: row[name] for name in ("ShardId", "HashKeyRange")}
                | {"ParentShards": [row[name] for name in _PARENTS if name in row]}
                for row in children
            ]
        return 200, json.dumps(answer).encode()

    def _put(self, name: str, records: list[dict[str, str]]) -> dict[str, Any]:
        assert 1 <= len(records) <= 500
        results: list[dict[str, str]] = []
        failed = 0
        total = 0
        for record in records:
            key, data = record["PartitionKey"], base64.b64decode(record["Data"])
            assert 1 <= len(key) <= 256
            size = len(data) + len(key.encode())
            total += size
            assert size <= self.record_kib * 1024
            shard = shard_for(self.shards[name], int(record.get("ExplicitHashKey", hash_key(key))))
            refused = self.random.random() < self.faults.partial
            if refused or (self.faults.shard_limits and not shard.has_room(size)):
                failed += 1
                self.refused += 1
                code = "InternalFailure" if refused and failed % 2 else "ProvisionedThroughputExceededException"
                results.append({"ErrorCode": code, "ErrorMessage": "no"})
                continue
            shard.records.append((key, data))
            shard.times.append(time.monotonic())
            results.append({"SequenceNumber": str(len(shard.records)), "ShardId": f"shardId-{shard.number:012d}"})
        assert total <= 10 << 20
        return {"FailedRecordCount": failed, "Records": results}

    def _summary(self, name: str) -> dict[str, Any]:
        return {
            "StreamName": name,
            "StreamARN": f"arn:aws:kinesis:{REGION}:123456789012:stream/{name}",
            "StreamStatus": self.status,
            "StreamModeDetails": {"StreamMode": "PROVISIONED"},
            "RetentionPeriodHours": 24,
            "StreamCreationTimestamp": self.created_at,
            "EnhancedMonitoring": [],
            "EncryptionType": "NONE",
            "OpenShardCount": sum(shard.is_open for shard in self.shards[name]),
            "MaxRecordSizeInKiB": self.record_kib,
        }


def hash_key(partition_key: str) -> int:
    """Return the hash key of a partition key, as Kinesis defines it."""
    return int.from_bytes(hashlib.md5(partition_key.encode()).digest(), "big")


def _listed(shard: Shard) -> dict[str, Any]:
    numbers = {"StartingSequenceNumber": "0"} | ({} if shard.is_open else {"EndingSequenceNumber": "9"})
    hashes = {"StartingHashKey": str(shard.first), "EndingHashKey": str(shard.last - 1)}
    parents = {name: f"shardId-{number:012d}" for name, number in zip(_PARENTS, shard.parents, strict=False)}
    return {"ShardId": shard.name, "HashKeyRange": hashes, "SequenceNumberRange": numbers, **parents}


def _error(code: str, message: str) -> tuple[int, bytes]:
    return 400, json.dumps({"__type": code, "message": message}).encode()


def main() -> None:
    """Serve a stream called ``changes`` until the end of the input; the first line is the endpoint."""
    # A stream that takes everything has a shard for each MiB a second, and more.
    null = "--null" in sys.argv
    with KinesisServer("changes", shards=64 if null else 4) as server:
        server.faults.null = null
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
