"""TLS contexts for connections to providers."""

import ssl

import httpx


class TlsContexts:
    """SSLContexts by `ca_file`, loaded on first use."""

    def __init__(self) -> None:
        self._contexts: dict[str | None, ssl.SSLContext] = {}

    def get(self, ca_file: str | None) -> ssl.SSLContext:
        """The context that trusts the authorities in `ca_file` alone, or the public ones for None. Raises OSError."""
        context = self._contexts.get(ca_file)
        if context is None:
            context = ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context()
            self._contexts[ca_file] = context
        return context
