"""Writes the format in which the Kinesis Producer Library puts several user records into one Kinesis record.

An aggregated record is four magic bytes, a protobuf message, and the MD5 of the message (aggregation-format.md in
awslabs/amazon-kinesis-producer). The message is ``AggregatedRecord``: 1 partition_key_table, 2 explicit_hash_key_table,
3 records; a record is 1 partition_key_index, 2 explicit_hash_key_index, 3 data. It is written here because the generic
protobuf library takes ten times as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

MAGIC: Final = b"\xf3\x89\x9a\xc2"
# The magic number, the MD5, the partition key and the explicit hash key of the Kinesis record.
FIXED_BYTES: Final = 4 + 16 + 1 + 39
# A user record without its key and data: three tags, three lengths, the index of the key.
RECORD_BYTES: Final = 20


def aggregated(records: Iterable[tuple[bytes, bytes, int]]) -> bytes:
    """Return the data of one Kinesis record that contains user records, in their order.

    Args:
        records: partition key in UTF-8, data, and a number that is not used.
    """
    keys: dict[bytes, bytes] = {}
    parts: list[bytes] = []
    for key, data, _ in records:
        if (index := keys.get(key)) is None:
            index = keys[key] = _varint(len(keys))
        size = len(data)
        length = _SHORT[size] if size < _TABLE else _varint(size)
        size += len(index) + len(length) + 2
        parts += (b"\x1a", _SHORT[size] if size < _TABLE else _varint(size), b"\x08", index, b"\x1a", length, data)
    table = [b"\x0a%b%b" % (_varint(len(key)), key) for key in keys]
    message = b"".join((*table, *parts))
    return b"".join((MAGIC, message, hashlib.md5(message, usedforsecurity=False).digest()))


def _varint(number: int) -> bytes:
    if number < _TABLE:
        return _SHORT[number]
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


# The varints of nearly all lengths and indexes.
_TABLE: Final = 1 << 12
_SHORT: Final = (
    *(bytes((number,)) for number in range(1 << 7)),
    *(bytes((number & 0x7F | 0x80, number >> 7)) for number in range(1 << 7, _TABLE)),
)
