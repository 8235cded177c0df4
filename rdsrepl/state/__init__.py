"""Layer 3: local state files: slot history, audit trail, streamed slots, completion cache.

Entry point: ``json_lines``, the one reader and the one appender of JSON lines.
"""
