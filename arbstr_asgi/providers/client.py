"""HTTP client for providers: sends a request, streams the response body, maps errors to UpstreamError."""

import ssl
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from arbstr_asgi.config.provider import KEEPALIVE_TIMEOUT, Provider
from arbstr_asgi.errors import ConfigError
from arbstr_asgi.providers.headers import Headers, RawHeaders

if TYPE_CHECKING:  # importing them takes longer than the rest of the package
    import httpx

    from arbstr_asgi.providers.direct_client import DirectClient
    from arbstr_asgi.providers.httpx_client import HttpxClient
    from arbstr_asgi.providers.tls import TlsContexts

# Settings of our own connections, with their defaults; a host's transport or client ignores them.
_CONNECTION_SETTINGS = {"proxy": None, "ca_file": None, "max_connections": None, "keepalive_timeout": KEEPALIVE_TIMEOUT}


class ProviderReply(Protocol):
    """A response whose body is read as it arrives, undecoded. Call `aclose` in any case."""

    status: int
    headers: Headers
    ended: bool
    """Whether the whole body has been read; the end may also show only as an empty `read`."""

    async def read(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises UpstreamError if the body is truncated."""
        ...

    async def aclose(self) -> None:
        """Release the connection, or close it if the body was not read to its end."""
        ...


class ProviderClient(Protocol):
    """Sends chat completion requests to providers."""

    def send(self, provider: Provider, body: bytes, headers: RawHeaders) -> Coroutine[Any, Any, ProviderReply]:
        """Send a request and wait for the response head. The caller closes the reply. Raises UpstreamError."""
        ...

    async def close(self) -> None:
        """Close all connections, except those of a host's transport or client."""
        ...


class HttpClient:
    """Sends over our own connections, or over the transport or client of the host, which the host closes itself.

    Requests through a proxy go over httpx, direct ones over `DirectClient`.
    """

    def __init__(
        self,
        providers: Sequence[Provider] = (),
        *,
        transport: "httpx.AsyncBaseTransport | None" = None,
        client: "httpx.AsyncClient | None" = None,
    ) -> None:
        """Raises ConfigError for provider settings that have no effect with the host's transport or client."""
        if transport is not None and client is not None:
            raise TypeError("give transport or client, not both")
        self._of_the_host = transport is not None or client is not None
        if self._of_the_host:
            _check_no_connection_settings(providers)
        self._providers = providers
        self._transport = transport
        self._client = client
        self._tls_contexts: TlsContexts | None = None
        self._direct: DirectClient | None = None
        self._httpx: HttpxClient | None = None

    def open(self) -> None:
        """Import the HTTP libraries and load each provider's `ca_file`. Raises ConfigError if one can't be read."""
        self._load()
        assert self._tls_contexts is not None
        for index, provider in enumerate(self._providers):
            if provider.ca_file is not None or provider.url.lower().startswith("https:"):
                try:
                    self._tls_contexts.get(provider.ca_file)
                except OSError as error:
                    what = "not a file of certificates" if isinstance(error, ssl.SSLError) else error.strerror
                    raise ConfigError(f"providers[{index}].ca_file: {provider.ca_file}: {what}") from None

    def send(self, provider: Provider, body: bytes, headers: RawHeaders) -> Coroutine[Any, Any, ProviderReply]:
        """Send a request and wait for the response head. Raises UpstreamError."""
        if self._direct is None:
            self._load()
        assert self._direct is not None
        assert self._httpx is not None
        if self._of_the_host or provider.proxy is not None:
            return self._httpx.send(provider, body, headers)
        return self._direct.send(provider, body, headers)

    async def close(self) -> None:
        """Close our own connections."""
        if self._direct is not None and self._httpx is not None:
            await self._direct.close()
            await self._httpx.close()

    def _load(self) -> None:
        from arbstr_asgi.providers.direct_client import DirectClient
        from arbstr_asgi.providers.httpx_client import HttpxClient
        from arbstr_asgi.providers.tls import TlsContexts

        if self._direct is None:
            self._tls_contexts = TlsContexts()
            self._httpx = HttpxClient(self._tls_contexts, transport=self._transport, client=self._client)
            self._direct = DirectClient(self._tls_contexts)


def _check_no_connection_settings(providers: Sequence[Provider]) -> None:
    for index, provider in enumerate(providers):
        for name, default in _CONNECTION_SETTINGS.items():
            if getattr(provider, name) != default:
                raise ConfigError(
                    f"providers[{index}].{name}: has no effect with a transport or client of yours; set it up there"
                )
