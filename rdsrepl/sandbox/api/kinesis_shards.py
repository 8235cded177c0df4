"""Makes the Kinesis of moto reshard as AWS does.

After SplitShard and MergeShards, moto moves the records of the closed shards into the new ones, goes on storing new
records in the closed shards, and never ends them for readers. On AWS a closed shard keeps its records and takes no
more, its last page of GetRecords has no iterator, and PutRecords stores new records in the open shard of their hash key
(Kinesis developer guide, "Data routing, data persistence, and shard state after a reshard"). Concurrent PutRecords to
one shard can lose records in moto: put_record is "not safe for concurrency".
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any


def reshard_like_aws() -> None:
    """Change moto in this process."""
    from moto.kinesis import models
    from moto.kinesis.utils import decompose_shard_iterator

    lock = threading.RLock()
    split, merge = models.Stream.split_shard, models.Stream.merge_shards
    put, read = models.Stream.put_record, models.KinesisBackend.get_records

    def keeping(stream: Any, shard_ids: tuple[str, ...], change: Any) -> None:
        with lock:
            parents = [stream.get_shard(shard_id) for shard_id in shard_ids]
            kept = [parent.records for parent in parents]
            for parent in parents:
                parent.records = OrderedDict()
            try:
                change()
            finally:
                for parent, records in zip(parents, kept, strict=True):
                    parent.records = records

    def split_shard(self: Any, shard_to_split: str, new_starting_hash_key: str) -> None:
        keeping(self, (shard_to_split,), lambda: split(self, shard_to_split, new_starting_hash_key))

    def merge_shards(self: Any, shard_to_merge: str, adjacent_shard_to_merge: str) -> None:
        both = (shard_to_merge, adjacent_shard_to_merge)
        keeping(self, both, lambda: merge(self, *both))

    def get_shard_for_key(self: Any, partition_key: str, explicit_hash_key: str) -> Any:
        md5 = hashlib.md5(partition_key.encode(), usedforsecurity=False)
        value = int(explicit_hash_key or int.from_bytes(md5.digest(), "big"))
        candidates = (shard for shard in self.shards.values() if shard.is_open and shard.starting_hash <= value)
        return max(candidates, key=lambda shard: shard.starting_hash)

    def put_record(self: Any, partition_key: str, explicit_hash_key: str, data: str) -> Any:
        with lock:
            return put(self, partition_key, explicit_hash_key, data)

    def get_records(self: Any, stream_arn: Any, shard_iterator: str, limit: Any) -> Any:
        name, shard_id, _ = decompose_shard_iterator(shard_iterator)
        with lock:
            following, records, behind = read(self, stream_arn, shard_iterator, limit)
            shard = self.describe_stream(stream_arn=stream_arn, stream_name=name).get_shard(shard_id)
            is_at_end = shard.get_records(decompose_shard_iterator(following)[2], 1)[0] == []
        return None if is_at_end and not shard.is_open else following, records, behind

    changed = {"split_shard": split_shard, "merge_shards": merge_shards, "put_record": put_record}
    for name, function in {**changed, "get_shard_for_key": get_shard_for_key}.items():
        setattr(models.Stream, name, function)
    models.KinesisBackend.get_records = get_records  # type: ignore[method-assign]
