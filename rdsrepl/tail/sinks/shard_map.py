"""Which shard of a stream takes a partition key. Pure: no I/O, no clock."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from rdsrepl.aws.streams import Shard

#: stands for a shard that ListShards does not show yet: no answer names it, so what is sent there is looked at again.
NOT_LISTED: Final = ""
_HASH_KEYS: Final = 1 << 128
# A copy of it costs half of a new hash. Kinesis maps keys with it; it protects nothing.
_EMPTY_MD5: Final = hashlib.md5(usedforsecurity=False)


def hash_key(partition_key: bytes) -> bytes:
    """Return the hash key of a partition key in UTF-8: 16 bytes, in the order of the numbers (PutRecords)."""
    md5 = _EMPTY_MD5.copy()
    md5.update(partition_key)
    return md5.digest()


@dataclass(frozen=True, slots=True)
class ShardMap:
    """The shards of a stream at one time.

    Attributes:
        open_ids: the shards that accept records, in the order of their hash keys; ``NOT_LISTED`` for the hash keys of
            shards that ListShards does not show yet.
        first_keys: the first hash key of each.
        ranges: the first and the last hash key of every shard, also of closed ones.
    """

    open_ids: tuple[str, ...]
    first_keys: tuple[bytes, ...]
    ranges: dict[str, tuple[bytes, bytes]]

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> ShardMap:
        """Return the map of the shards that ListShards returned."""
        listed = tuple(shards)
        parents = {parent for shard in listed for parent in shard.parents}
        # A parent is closed, also where its children were listed before its last sequence number.
        current = sorted(
            (shard for shard in listed if shard.is_open and shard.shard_id not in parents),
            key=lambda shard: shard.first_hash_key,
        )
        lanes: list[tuple[int, str]] = []
        covered = 0
        for shard in current:
            if shard.first_hash_key > covered:
                lanes.append((covered, NOT_LISTED))
            lanes.append((shard.first_hash_key, shard.shard_id))
            covered = shard.last_hash_key + 1
        if covered < _HASH_KEYS:
            lanes.append((covered, NOT_LISTED))
        return cls(
            tuple(shard_id for _, shard_id in lanes),
            tuple(_digest(first) for first, _ in lanes),
            {shard.shard_id: (_digest(shard.first_hash_key), _digest(shard.last_hash_key)) for shard in listed},
        )

    def position(self, key: bytes) -> int:
        """Return the position in ``open_ids`` of the shard that takes a hash key."""
        return max(0, bisect_right(self.first_keys, key) - 1)

    def discards(self, shard_id: str, key: bytes) -> bool:
        """Return whether consumers of a shard discard the part of an aggregated record that has this hash key.

        The KCL discards it if the key is not in the shard's range. True if the shard is not known.
        """
        first, last = self.ranges.get(shard_id, (b"", b""))
        return not first <= key <= last


def _digest(hash_key: int) -> bytes:
    return min(hash_key, _HASH_KEYS - 1).to_bytes(16, "big")
