"""``rdsrepl slot``: one module per verb that is more than a call. Entry point: ``commands.app``."""
