"""The door to AWS, and its nouns."""
