"""Where the tail writes lines to. Entry point: ``base.Sink``."""
