"""Layer 5, above ``tail``: copy the rows that tables have into the output of a stream, before its first change.

``initial.copy`` is the entry point: it creates the slot, and the stream begins exactly where the copy ends.
"""
