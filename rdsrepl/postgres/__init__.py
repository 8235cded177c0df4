"""Layer 3: PostgreSQL, one module per noun. Entry point: ``connection.connect``, the only place that connects."""
