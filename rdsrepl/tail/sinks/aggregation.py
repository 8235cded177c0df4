"""Many records of one partition key as one, in the format of the Kinesis Producer Library.

Consumers that know it (KCL, Lambda's de-aggregation modules, ``rdsrepl stream tail``) see the single records again.
"""

from __future__ import annotations

from rdsrepl.errors import Error
from rdsrepl.tail.sinks.dispatch import Item


def aggregated(item: Item) -> bytes:
    """Return the data of one record that holds all of ITEM's, in their order.

    Raises:
        Error: the library that knows the format is not installed, or did not take them as one.
    """
    try:
        from aws_kinesis_agg.aggregator import RecordAggregator
    except ImportError as exc:
        raise Error(
            "--aggregate needs the package aws_kinesis_agg", hint="install it: pip install 'rdsrepl[kinesis]'"
        ) from exc
    aggregator = RecordAggregator()
    for record in item:
        if aggregator.add_user_record(record.key, record.data) is not None:
            raise Error("an aggregated record came out larger than it may be", hint="please report it")
    _, _, data = aggregator.clear_and_get().get_contents()
    return bytes(data)
