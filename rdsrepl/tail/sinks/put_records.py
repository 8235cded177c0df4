"""Calls PutRecords through botocore, but writes the bodies and reads the answers itself.

Botocore signs the requests and provides endpoints and credentials. The request's body is written here, and the usual
answer (no record failed) is recognised without parsing, because botocore's own serialising costs more than everything
else together.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final

from rdsrepl.aws import session
from rdsrepl.aws.streams import KinesisStream
from rdsrepl.config import Aws
from rdsrepl.errors import Unreachable
from rdsrepl.tail.sinks.batching import Encoder, Entry

# Of the records in the requests that are in progress together.
_IN_PROGRESS_BYTES: Final = 8 << 20
_NONE_FAILED: Final = b'"FailedRecordCount":0'
_EMPTY_ANSWER: Final = b'{"FailedRecordCount":0,"Records":[]}'


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request.

    Attributes:
        refused: the error code of each record that was refused, by its position.
        shard_ids: the shard of each record, "" for a refused one; empty unless it was asked for.
    """

    refused: Mapping[int, str] = field(default_factory=dict)
    shard_ids: Sequence[str] = ()


class PutRecordsClient:
    """Calls PutRecords through botocore, but writes the bodies and reads the answers itself."""

    def __init__(self, aws: Aws, stream: KinesisStream, encoder: Encoder[Any], *, with_shards: bool) -> None:
        """Make a client; ENCODER writes the records, and WITH_SHARDS answers name the shard of each."""
        self._encoder = encoder
        self._with_shards = with_shards
        self._aws = aws
        self._arn = stream.arn
        self._head = f'{{"StreamARN":{quote(stream.arn)},"Records":['.encode()
        self._local = threading.local()
        self._room = threading.Condition()
        self._in_progress = 0
        self._client = session.client_without_retries(aws, "kinesis")
        events = self._client.meta.events
        events.register("before-call.kinesis.PutRecords", self._body)
        events.register("before-parse.kinesis.PutRecords", self._answer)

    def put(self, entries: Sequence[Entry]) -> Answer:
        """Send one request.

        Raises:
            Unreachable: it failed, or its outcome is unknown; it can be retried.
            Error: Kinesis refuses it, and a retry cannot succeed.
        """
        import botocore.exceptions

        size = self._encoder.memory(entries)
        self._begin(size)
        self._local.answer = b""
        try:
            self._local.body = b"%b%b]}" % (self._head, self._encoder.encoded(entries))
            # Botocore does not check the records; it signs and sends the body above, to the endpoint that it derives
            # from the ARN.
            self._client.put_records(StreamARN=self._arn, Records=[])
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as exc:
            raise session.translate(exc, "kinesis", "PutRecords", self._aws) from exc
        finally:
            self._local.body = b""
            self._end(size)
        answer: bytes = self._local.answer
        if _NONE_FAILED in answer and not self._with_shards:
            return Answer()
        return _parsed(answer, len(entries))

    def _begin(self, size: int) -> None:
        """Wait until the requests in progress leave room for one of this size; a single one always has room.

        A body in JSON and Base64 takes more memory than its records, which the queue counts.
        """
        with self._room:
            self._room.wait_for(lambda: not self._in_progress or self._in_progress + size <= _IN_PROGRESS_BYTES)
            self._in_progress += size

    def _end(self, size: int) -> None:
        with self._room:
            self._in_progress -= size
            self._room.notify_all()

    def _body(self, params: dict[str, Any], **_: Any) -> None:
        params["body"] = self._local.body

    def _answer(self, response_dict: dict[str, Any], **_: Any) -> None:
        if response_dict["status_code"] < 300:
            self._local.answer = response_dict["body"]
            response_dict["body"] = _EMPTY_ANSWER


def _parsed(answer: bytes, count: int) -> Answer:
    """Return what an answer says.

    Raises:
        Unreachable: this is not an answer of Kinesis to COUNT records, so the outcome is unknown.
    """
    try:
        results = json.loads(answer)["Records"]
        refused = {n: str(result["ErrorCode"]) for n, result in enumerate(results) if result.get("ErrorCode")}
        if len(results) == count:
            return Answer(refused, [str(result.get("ShardId") or "") for result in results])
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise Unreachable("PutRecords: the answer is not from Kinesis", hint="check the endpoint, and proxies before it")
