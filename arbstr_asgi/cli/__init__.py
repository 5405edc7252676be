"""The `arbstr` command: all that knows click or hypercorn."""
