"""Kinesis as a sink: at least once, and in order for each partition key, also when Kinesis refuses records.

``Dispatch`` decides what to send when; the threads here send it. After throttling, server errors and lost connections
the refused records are retried without a limit, with jitter. An error that no retry can fix stops the tail; nothing is
confirmed that Kinesis has not acknowledged. Botocore signs the requests and provides endpoints and credentials; the
request's body is written here, and the usual answer (no record failed) is recognised without parsing, because
botocore's own serialising costs more than everything else together.
"""

from __future__ import annotations

import json
import random
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final

from rdsrepl.aws import session
from rdsrepl.aws.streams import KinesisStream
from rdsrepl.config import Aws
from rdsrepl.errors import Error, Unreachable
from rdsrepl.tail.formats.partition_keys import SEPARATOR, split
from rdsrepl.tail.sinks.aggregation import aggregated
from rdsrepl.tail.sinks.batching import REQUEST_BYTES, Dispatch, Item, Limits
from rdsrepl.tail.sinks.oversize import Oversize
from rdsrepl.tail.wakeup import WakeupPipe

_FIRST_DELAY_SECONDS: Final = 0.02
_LONGEST_DELAY_SECONDS: Final = 5.0
_NOTE_EVERY_SECONDS: Final = 10.0
_NONE_FAILED: Final = b'"FailedRecordCount":0'
_EMPTY_ANSWER: Final = b'{"FailedRecordCount":0,"Records":[]}'


@dataclass(slots=True)
class KinesisCounts:
    """What was sent so far.

    Attributes:
        records: acknowledged.
        requests: sent, answered or not.
        retries: records that were refused and sent again.
        throttles: retries that were throttled.
        shortened: changes whose largest values were left out.
        dead_letters: changes that were written to the dead-letter file.
    """

    records: int = 0
    requests: int = 0
    retries: int = 0
    throttles: int = 0
    shortened: int = 0
    dead_letters: int = 0


class KinesisSink:
    """Writes keyed lines to a stream from its own threads."""

    def __init__(
        self,
        aws: Aws,
        stream: KinesisStream,
        limits: Limits,
        *,
        requests: int,
        oversize: Oversize,
        note: Callable[[str], None],
    ) -> None:
        """Start the threads.

        Args:
            aws: the AWS account and region.
            stream: the data stream.
            limits: of a request.
            requests: how many may be in progress at the same time.
            oversize: handles records that exceed the stream's limit.
            note: called at an interval while Kinesis refuses all records.
        """
        self.counts = KinesisCounts()
        self._dispatch = Dispatch(limits)
        self._stream = stream
        self._oversize = oversize
        self._note = note
        self._noted_at = 0.0
        self._failure: Error | None = None
        self._finishing = False
        self._closed = False
        self._changed = threading.Condition()
        self.wakeup = WakeupPipe()
        self._caller = _PutRecordsClient(aws, stream)
        self._threads = [
            threading.Thread(target=self._work, name=f"kinesis-{number}", daemon=True) for number in range(requests)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, number: int, lines: Sequence[str] | Sequence[bytes]) -> None:
        """Accept batch NUMBER of keyed lines.

        Raises:
            Error: an earlier batch could not be written, or a record of this one is too large.
        """
        if self._failure is not None:
            raise self._failure
        records = []
        limit = self._stream.record_bytes
        for line in lines:
            for one in _lines(line):
                key, text = split(one)
                data = text.encode("utf-8", "surrogateescape")
                if len(data) + len(key) > limit and len(data) + len(key.encode()) > limit:
                    fitting = self._oversize.fit(key, data, limit)
                    if fitting is None:
                        self.counts.dead_letters += 1
                        continue
                    self.counts.shortened += 1
                    data = fitting
                records.append((key, data))
        with self._changed:
            self._dispatch.accept(number, records, time.monotonic())
            self._changed.notify()
        if not records:
            self.wakeup.wake()

    @property
    def pending_bytes(self) -> int:
        """The approximate memory of what is not acknowledged."""
        return self._dispatch.pending_bytes

    @property
    def durable(self) -> int:
        """The number up to which Kinesis has acknowledged every record.

        Raises:
            Error: Kinesis refuses with an error that no retry can fix.
        """
        if self._failure is not None:
            raise self._failure
        return self._dispatch.durable

    def finish(self) -> None:
        """Send without batching delay from now on."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop sending."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=0.5)
        self._oversize.close()
        if not any(thread.is_alive() for thread in self._threads):
            self.wakeup.close()

    def _work(self) -> None:
        try:
            while (items := self._next()) is not None:
                self._send(items)
        except Error as exc:
            self._fail(exc)
        except Exception as exc:  # noqa: BLE001 - a thread that ends without an error would block the tail
            self._fail(Error(f"could not write to stream {self._stream.name}: {exc!r}", hint="please report it"))

    def _next(self) -> list[Item] | None:
        """Wait for the next request's items; None at the end."""
        with self._changed:
            while not self._closed and self._failure is None:
                now = time.monotonic()
                due = self._dispatch.due_in(now)
                if due is not None and (due == 0.0 or self._finishing):
                    items = self._dispatch.take(now, flush=self._finishing)
                    if items:
                        self._changed.notify()  # there may be more for the next thread
                        return items
                self._changed.wait(due)
            return None

    def _send(self, items: list[Item]) -> None:
        self.counts.requests += 1
        try:
            refused, why = self._caller.put(items)
        except Unreachable as exc:
            refused, why = list(range(len(items))), exc.aws_code or exc.message
        now = time.monotonic()
        if not refused:
            with self._changed:
                self._dispatch.acknowledged(items, now)
                self.counts.records += sum(map(len, items))
                self._changed.notify()
            self.wakeup.wake()
            return
        failed = set(refused)
        back = [items[position] for position in refused]
        with self._changed:
            self._dispatch.acknowledged((item for n, item in enumerate(items) if n not in failed), now)
            for item in back:
                # Each item has its own delay: other shards may have capacity, and retries must not coincide.
                longest = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** min(item[0].refusals, 10))
                self._dispatch.refused(item, now + random.uniform(longest / 10, longest))
            again = sum(map(len, back))
            self.counts.records += sum(map(len, items)) - again
            self.counts.retries += again
            if "Throughput" in why or "Throttl" in why:
                self.counts.throttles += again
            self._changed.notify()
        if len(back) == len(items) and now - self._noted_at > _NOTE_EVERY_SECONDS:
            self._noted_at = now
            self._note(f"stream {self._stream.name} refuses all records ({why}); retrying, the slot keeps its WAL")
        self.wakeup.wake()

    def _fail(self, failure: Error) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()
        self.wakeup.wake()


class _PutRecordsClient:
    """Calls PutRecords through botocore, but writes the bodies and reads the answers itself."""

    def __init__(self, aws: Aws, stream: KinesisStream) -> None:
        self._aws = aws
        self._arn = stream.arn
        self._head = f'{{"StreamARN":{quote(stream.arn)},"Records":['.encode()
        self._local = threading.local()
        self._client = session.client_without_retries(aws, "kinesis")
        events = self._client.meta.events
        events.register("before-call.kinesis.PutRecords", self._body)
        events.register("before-parse.kinesis.PutRecords", self._answer)

    def put(self, items: Sequence[Item]) -> tuple[list[int], str]:
        """Send one request; return the positions of the items that were refused, and why.

        Raises:
            Unreachable: it failed, or its outcome is unknown; it can be retried.
            Error: Kinesis refuses it, and a retry cannot succeed.
        """
        import botocore.exceptions

        self._local.body = _joined(self._head, items)
        self._local.answer = b""
        try:
            # Botocore does not check the records; it signs and sends the body above, to the endpoint that it derives
            # from the ARN.
            self._client.put_records(StreamARN=self._arn, Records=[])
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as exc:
            raise session.translate(exc, "kinesis", "PutRecords", self._aws) from exc
        finally:
            self._local.body = b""
        answer: bytes = self._local.answer
        if _NONE_FAILED in answer:
            return [], ""
        return _refusals(answer, len(items))

    def _body(self, params: dict[str, Any], **_: Any) -> None:
        params["body"] = self._local.body

    def _answer(self, response_dict: dict[str, Any], **_: Any) -> None:
        if response_dict["status_code"] < 300:
            self._local.answer = response_dict["body"]
            response_dict["body"] = _EMPTY_ANSWER


def _refusals(answer: bytes, count: int) -> tuple[list[int], str]:
    """Return the positions of the records that were refused, and why.

    Raises:
        Unreachable: this is not an answer of Kinesis to COUNT records, so the outcome is unknown.
    """
    try:
        results = json.loads(answer)["Records"]
        codes = {n: str(result["ErrorCode"]) for n, result in enumerate(results) if result.get("ErrorCode")}
        if len(results) == count:
            return list(codes), ", ".join(sorted(set(codes.values())))
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise Unreachable("PutRecords: the answer is not from Kinesis", hint="check the endpoint, and proxies before it")


def _joined(head: bytes, items: Sequence[Item]) -> bytes:
    """Return a request's body without copying it more than once: it may have megabytes."""
    parts = [head]
    for item in items:
        parts += (_record(item), b",")
    parts[-1] = b"]}"
    return b"".join(parts)


def _record(item: Item) -> bytes:
    data = item[0].data if len(item) == 1 else aggregated(item)
    return b'{"Data":"%b","PartitionKey":%b}' % (b64encode(data), quote(item[0].key).encode())


def _lines(line: str | bytes) -> Sequence[str]:
    """Return the records in a decoder's output: each ends with its own newline."""
    assert isinstance(line, str)
    if not line:
        return ()
    if line.count("\n") == 1:
        return (line[:-1],)
    records: list[str] = []
    for one in line[:-1].split("\n"):
        # A tombstone has no partition key: it gets that of the delete before it.
        records.append(
            one if SEPARATOR in one or not records else records[-1].partition(SEPARATOR)[0] + SEPARATOR + one
        )
    return records


def limits(stream: KinesisStream, *, linger_seconds: float, aggregate: bool) -> Limits:
    """Return the limits of a request to a stream."""
    return Limits(
        linger_seconds=linger_seconds,
        request_bytes=max(REQUEST_BYTES, stream.record_bytes),
        aggregate_bytes=min(stream.record_bytes, _AGGREGATE_BYTES) - _AGGREGATE_HEAD_BYTES if aggregate else None,
    )


# The KPL's default: large enough to save records, small enough for a shard's limit of 1 MiB/s.
_AGGREGATE_BYTES: Final = 51_200
# Magic number, MD5, the table of keys (the key itself is counted with the data).
_AGGREGATE_HEAD_BYTES: Final = 64
