"""Layer 4: what replication slots retain, until when that lasts, and which slots may be dropped."""
