"""Layer 5c: copy the rows that tables have into the output of a stream.

``initial.copy`` copies before the first change: it creates the slot, and the stream begins exactly where the copy ends.
``stream.opener`` lets a running stream write the snapshots that ``rdsrepl snapshot`` requests.
"""
