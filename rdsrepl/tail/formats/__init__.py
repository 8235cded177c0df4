"""Write ``tail.model`` in one output format each. Entry point: ``base.Format``."""
