"""Layer 3: AWS, one module per noun. Entry point: ``session.client``, the only place that creates clients."""
