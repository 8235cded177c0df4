"""The operations of the RDS API, by noun. Importing this package registers them with ``service``."""
