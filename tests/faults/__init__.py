"""The fault matrix: real servers under load while something is broken on purpose; `matrix.py` is its command."""
