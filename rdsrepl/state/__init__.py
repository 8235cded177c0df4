"""Local state files (layer 3, beside ``postgres`` and ``aws``; for now it imports nothing but the standard library).

``json_lines`` is the one reader and the one appender of JSON lines: the audit trail, the slot history, the journals.
"""
