"""Layer 4: RDS parameter groups: sizes, formulas, allowed values, differences, plans to attach and roll out."""
