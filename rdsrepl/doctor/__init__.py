"""Layer 6: check whether a server is ready for logical replication. Entry points: ``facts.gather``, ``check_list.ALL``."""
