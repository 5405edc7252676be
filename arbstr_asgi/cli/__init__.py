"""The `arbstr` command, its server and its supervisor: all code that needs click or hypercorn."""
