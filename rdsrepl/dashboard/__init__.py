"""Layer 6: ``slot watch``, the live view. Entry points: ``poller.SlotPoller``, ``loop.run``."""
