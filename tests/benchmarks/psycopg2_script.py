"""A script as in many tutorials: psycopg2, one put_record for each message, one partition key; only for comparison.

python -m tests.benchmarks.psycopg2_script DSN SLOT ENDPOINT MESSAGES
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import boto3
import psycopg2
from psycopg2.extras import LogicalReplicationConnection


class Done(Exception):
    """All messages were received."""


def main() -> None:
    """Stream the slot, and put each message separately."""
    dsn, slot, endpoint, wanted = sys.argv[1:]
    client = boto3.client(
        "kinesis", endpoint_url=endpoint, region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    cursor = psycopg2.connect(dsn, connection_factory=LogicalReplicationConnection).cursor()
    cursor.start_replication(
        slot_name=slot, options={"format-version": "2", "include-transaction": "false"}, decode=True
    )
    seen = 0

    def consume(message: Any) -> None:
        nonlocal seen
        client.put_record(StreamName="changes", Data=message.payload, PartitionKey="default")
        message.cursor.send_feedback(flush_lsn=message.data_start)
        seen += 1
        if seen >= int(wanted):
            raise Done

    with suppress(Done):
        cursor.consume_stream(consume)


main()
