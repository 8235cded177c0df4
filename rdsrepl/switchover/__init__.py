"""Layer 5c: what a switchover from a primary to its standby waits for and proves, and its plan.

Entry points: ``planner.planned``, ``planner.unplanned``, ``planner.finish``. ``failover/switchover.py`` decides.
"""
