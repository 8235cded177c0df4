"""Tail a slot: receive, decode, format, deliver, confirm (design: at least once, nothing lost)."""
