"""What the senders of the Kinesis sink need of a dispatch: it decides which records to send when.

Pure: no I/O, no clock. There are two: ``by_key`` sends each record separately and keeps the order of each partition
key, ``by_shard`` aggregates all records of a shard.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote
from typing import Final, Protocol, TypeVar

# A fifth of PutRecords's limit: larger requests are not faster, and each is in memory twice while it is sent.
REQUEST_BYTES: Final = 2 << 20
# The approximate memory of a queued record, without its bytes.
RECORD_OVERHEAD_BYTES: Final = 250


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a request, and the maximum batching delay of a record.

    Attributes:
        records: Kinesis records in a request.
        request_bytes: of a request's data and keys.
        linger_seconds: how long the first record waits for others.
        aggregate_bytes: the maximum size of an aggregated record.
    """

    records: int = 500
    request_bytes: int = REQUEST_BYTES
    linger_seconds: float = 0.01
    aggregate_bytes: int = 50_000


class Entry(Protocol):
    """One record of a request.

    Attributes:
        changes: how many changes it has.
        refusals: how often Kinesis refused it.
    """

    @property
    def changes(self) -> int: ...  # noqa: D102

    @property
    def refusals(self) -> int: ...  # noqa: D102


E = TypeVar("E", bound=Entry)
E_contra = TypeVar("E_contra", bound=Entry, contravariant=True)


class Encoder(Protocol[E_contra]):
    """Writes the entries of a request. Keeps nothing, so that several threads may use it."""

    def memory(self, entries: Sequence[E_contra], /) -> int:
        """Return the approximate bytes of their keys and data."""
        ...

    def encoded(self, entries: Sequence[E_contra], /) -> bytes:
        """Return them in JSON, as ``Records`` of PutRecords has them, without the brackets."""
        ...


class Dispatch(Encoder[E], Protocol[E]):
    """Holds the records that were accepted and are not acknowledged.

    Attributes:
        durable: the number up to which every batch is acknowledged.
        pending_bytes: the approximate memory of the records.
    """

    durable: int
    pending_bytes: int

    def accept(self, number: int, records: Sequence[tuple[bytes, bytes]], now: float) -> None:
        """Accept a batch; its records are (partition key, data) in commit order."""
        ...

    def due_in(self, now: float) -> float | None:
        """Return in how many seconds a record is to be sent; None if none waits."""
        ...

    def take(self, now: float, *, flush: bool = False) -> list[E]:
        """Return the entries of the next request; empty if none is due.

        Args:
            now: the time, on the clock of ``accept``.
            flush: send what waits, without a delay.
        """
        ...

    def answered(
        self, entries: Sequence[E], again: Mapping[int, float], shard_ids: Sequence[str], now: float, /
    ) -> None:
        """Record the answer to a request.

        Args:
            entries: of the request.
            again: the positions of those that were refused, and when each is to be sent again.
            shard_ids: the shard of each entry, where it was asked for; "" for one that was refused.
            now: the time, on the clock of ``accept``.
        """
        ...


def entry(data: bytes, partition_key: bytes) -> bytes:
    """Return an entry of PutRecords in JSON."""
    # The function that base64.b64encode calls.
    text = b2a_base64(data, newline=False)
    return b'{"Data":"%b","PartitionKey":%b}' % (text, quote(partition_key.decode()).encode())
