"""Layer 6: run the runbooks of ``docs/runbooks``. Entry points: ``pages.load``, ``runner.run``."""
