"""Layer 5: stream a slot's changes to a sink, confirming what the sink has stored. Entry point: ``run.Job``."""
