"""Layer 4: RDS parameter groups.

Entry points: ``group_plans`` (the plans of ``param-group``), ``sizing.propose`` (the values), ``rollout`` (the order of
reboots), ``attachments`` (reads what a group is attached to), ``diff`` (differences).
"""
