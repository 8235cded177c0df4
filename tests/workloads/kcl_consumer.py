"""Reads aggregated records as the Kinesis Client Library does, by the published description of the format.

It separates the user records, and discards those whose hash key is not in the range of the shard that they were read
from (``AggregatorUtil`` of the KCL).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from tests.workloads.kinesis_server import Shard, hash_key

MAGIC = b"\xf3\x89\x9a\xc2"


def delivered(shards: Sequence[Shard]) -> Iterator[tuple[str, bytes]]:
    """Yield the partition key and the data of every user record: the children of a shard after the shard."""
    for shard in shards:
        for key, data in shard.records:
            yield from of_record(shard, key, data)


def of_record(shard: Shard, key: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the user records of one Kinesis record that are in the shard's range."""
    if not data.startswith(MAGIC):
        yield key, data
        return
    message, md5 = data[4:-16], data[-16:]
    assert hashlib.md5(message).digest() == md5
    keys: list[str] = []
    hashes: list[int] = []
    records: list[dict[int, int | bytes]] = []
    for number, value in _fields(message):
        assert isinstance(value, bytes)
        if number == 1:
            keys.append(value.decode())
        elif number == 2:
            hashes.append(int(value))
        else:
            records.append(dict(_fields(value)))
    for record in records:
        key_number, inner = record[1], record[3]
        assert isinstance(key_number, int) and isinstance(inner, bytes)
        hashed = hash_key(keys[key_number])
        if (explicit := record.get(2)) is not None:
            assert isinstance(explicit, int)
            hashed = hashes[explicit]
        if shard.first <= hashed < shard.last:
            yield keys[key_number], inner


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protobuf message: varints and byte strings."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        else:
            assert tag & 7 == 2
            length = varint()
            yield tag >> 3, message[position : position + length]
            position += length
