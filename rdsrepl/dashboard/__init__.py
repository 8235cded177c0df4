"""Layer 6: ``slot watch``, the live view. Entry points: ``loop.run_full_screen``, ``loop.run_lines``."""
