"""Is logical replication ready here: facts gathered once, then pure checks over them."""
