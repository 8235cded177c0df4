"""Find the rows that differ between two tables whose key has no order that both sides share: compare hashes of the key.

A key that is compared as text has no index, and text that the sides sort differently has no ranges that have the same
rows on both. Each side then reads its table once for all buckets, and once more for the rows of those that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from rdsrepl.verify import statements
from rdsrepl.verify.ranges import MOST_SUSPECTS, Differences, Pair, Total
from rdsrepl.verify.statements import Side

_ROWS_PER_BUCKET: Final = 64
_MOST_BUCKETS: Final = 1 << 17
# The number of rows, of buckets that differ, that one statement reads.
_ROWS_PER_STATEMENT: Final = 200_000


def differences(
    pair: Pair, source: Side, target: Side, estimated_rows: int, progress: Callable[[int], None]
) -> Differences:
    """Compare all rows of a table by hashes of its key; the statements take as long as they need.

    Args:
        pair: the connections.
        source: how to read the table of the source.
        target: how to read that of the target.
        estimated_rows: about how many rows it has.
        progress: called with the number of rows of the source.
    """
    count = min(1 << max(estimated_rows // _ROWS_PER_BUCKET, 1).bit_length(), _MOST_BUCKETS)
    both = pair.both(*(statements.buckets(side, count) for side in (source, target)), is_limited=False)
    here, there = ({place: Total(rows, total) for place, rows, total in found} for found in both)
    of_source, of_target = (sum(total.rows for total in side.values()) for side in (here, there))
    found = Differences(of_source, of_target)
    progress(found.source_rows)
    for some in _groups(here, there):
        if len(found.suspects) > MOST_SUSPECTS:
            break
        found.add_rows(pair, *(statements.rows_of_buckets(side, count, some) for side in (source, target)))
    return found


def _groups(here: Mapping[int, Total], there: Mapping[int, Total]) -> Iterator[list[int]]:
    """Yield the buckets that differ, in groups that one statement can read."""
    group: list[int] = []
    rows = 0
    for place in sorted(here.keys() | there.keys()):
        of_source, of_target = here.get(place), there.get(place)
        if of_source == of_target:
            continue
        group.append(place)
        rows += max(total.rows for total in (of_source, of_target) if total is not None)
        if rows >= _ROWS_PER_STATEMENT:
            yield group
            group, rows = [], 0
    if group:
        yield group
