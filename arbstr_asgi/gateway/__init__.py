"""The main path: one call from its request to its row."""
