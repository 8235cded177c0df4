"""Local state files (layer 3, beside ``postgres`` and ``aws``; for now it imports no other module of ours).

``json_lines`` is the one reader and the one appender of JSON lines: the audit trail, the slot history, the journals.
``yaml_nodes`` reads YAML texts into nodes, for the config file and the runbooks.
"""
