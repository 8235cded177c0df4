"""Layer 5: compare the tables of two databases while both change, and prove each difference.

``run.verify`` is the entry point. ``repair.plan`` turns proven differences into a plan. The package reads; it changes
nothing but that an idle source may get a heartbeat message.
"""
