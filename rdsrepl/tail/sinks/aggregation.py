"""Combines records of one partition key into one, in the format of the Kinesis Producer Library.

Consumers that support it (KCL, Lambda's de-aggregation modules, ``rdsrepl stream tail``) separate the records again.
"""

from __future__ import annotations

from rdsrepl.errors import Error
from rdsrepl.tail.sinks.batching import Item


def aggregated(item: Item) -> bytes:
    """Return the data of one record that contains all records of ITEM, in their order.

    Raises:
        Error: the library for the format is not installed, or did not combine them.
    """
    try:
        from aws_kinesis_agg.aggregator import RecordAggregator
    except ImportError as exc:
        raise Error(
            "--aggregate requires the package aws_kinesis_agg", hint="install it: pip install 'rdsrepl[kinesis]'"
        ) from exc
    aggregator = RecordAggregator()
    for record in item:
        if aggregator.add_user_record(record.key, record.data) is not None:
            raise Error("an aggregated record is larger than the limit", hint="please report it")
    _, _, data = aggregator.clear_and_get().get_contents()
    return bytes(data)
