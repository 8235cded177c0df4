"""Layer 5: stream a slot's changes to a sink, and confirm what the sink has stored. Entry point: ``run.run``."""
