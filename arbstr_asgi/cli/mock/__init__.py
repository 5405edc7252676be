"""Mock providers without key or network, for `arbstr demo` and `arbstr serve --mock`."""
