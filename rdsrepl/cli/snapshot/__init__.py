"""``rdsrepl snapshot``: write the rows of tables into a running stream; entry point: ``commands``."""
