"""The door to PostgreSQL (``connection``), and the nouns behind it. The module is the noun, the function the verb."""
