"""What may be shown of a text that somebody else wrote. Layer 1: pure functions on ``str``, used by every layer above.

Entry points: ``escapes.shown`` (for a terminal), ``escapes.json_text`` and ``escapes.yaml_text`` (documents),
``masking.mask`` (secrets), ``commands.command`` (a line to be pasted into a shell).
"""
