"""Layer 6: check a server for logical replication. Entry points: ``facts.gather``, ``check_list.ALL``."""
