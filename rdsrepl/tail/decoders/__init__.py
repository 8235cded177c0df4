"""Decode the messages of one output plugin each into ``tail.model``."""
