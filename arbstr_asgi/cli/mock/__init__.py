"""Providers that need no key and no network, for `arbstr demo` and `arbstr serve --mock`."""
