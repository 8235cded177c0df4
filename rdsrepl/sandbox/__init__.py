"""A local stand-in for RDS."""
