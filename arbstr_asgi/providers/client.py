"""The way to a provider: a request over httpx, the reply as it comes, and what went wrong in our words."""

import logging
import ssl
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

import aiohttp
import httpx

from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import ConfigError, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from arbstr_asgi.providers.headers import Headers, RawHeaders
from arbstr_asgi.providers.transport import TransportPool, proxy_login

logger = logging.getLogger("arbstr_asgi")

# They mean something to our own transports only.
_WAYS = ("proxy", "ca_file", "max_connections")

# Nothing of the request has reached the provider; anything else may have been worked on and billed.
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError)
_NEVER_SENT_BY_ANY = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol)
_TOO_LATE_TO_SEND = (httpx.ConnectTimeout, httpx.PoolTimeout)
_WANTS_CREDENTIALS = 407


class ProviderClient(Protocol):
    """Sends requests. One provider is asked; several could be behind the same seam."""

    async def send(self, provider: Provider, body: bytes, headers: RawHeaders) -> "ProviderReply":
        """Send a request. The reply is to be closed by its receiver. Raises UpstreamError."""
        ...

    async def close(self) -> None:
        """Close the connections that are ours."""
        ...


class HttpxClient:
    """Providers over HTTP: on transports of our own, or on the host's transport or client, which it closes itself."""

    def __init__(
        self,
        providers: Sequence[Provider] = (),
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        """Raises ConfigError for a provider whose settings the host's transport or client would not know of."""
        if transport is not None and client is not None:
            raise TypeError("give transport or client, not both")
        if transport is not None or client is not None:
            _check_no_ways(providers)
        self._providers = providers
        self._transport = transport
        self._client = client
        self._own = TransportPool()
        self._urls: dict[str, httpx.URL] = {}

    def load_certificates(self) -> None:
        """Read the authorities that providers name, so that a mistake is known at start. Raises ConfigError."""
        for index, provider in enumerate(self._providers):
            if provider.ca_file is not None:
                try:
                    self._own.ssl_context(provider.ca_file)
                except OSError as error:
                    what = "not a file of certificates" if isinstance(error, ssl.SSLError) else error.strerror
                    raise ConfigError(f"providers[{index}].ca_file: {provider.ca_file}: {what}") from None

    async def send(self, provider: Provider, body: bytes, headers: RawHeaders) -> "ProviderReply":
        """Send on whichever transport there is; the body is still to be read."""
        request = self._request(provider, body, headers)
        failure: UpstreamError | None = None
        try:
            response = await self._send(provider, request)
        except Exception as error:  # noqa: BLE001 - transports let more through than httpx.HTTPError
            # The class says enough; the text may hold the URL's secrets.
            logger.warning("no answer from %s: %s", request.url.host, type(error.__cause__ or error).__name__)
            failure = connect_error(error)
        if failure is not None:
            raise failure  # out of the handler, whose error may hold a proxy's login
        if response.status_code == _WANTS_CREDENTIALS and provider.proxy is not None:
            await response.aclose()
            logger.warning("no answer from %s: its proxy refuses our credentials", request.url.host)
            raise UpstreamUnreachable("The provider could not be reached.")
        return HttpxReply(response)

    def _request(self, provider: Provider, body: bytes, headers: RawHeaders) -> httpx.Request:
        url = self._urls.get(provider.name)
        if url is None:
            url = self._urls[provider.name] = httpx.URL(
                f"{provider.url}/chat/completions", params=provider.query or None
            )
        # No total and no read time-out: the gateway's own deadline tells a slow first byte from an idle stream. "pool"
        # is the wait for a connection together with making it, through a proxy, too.
        connect = provider.connect_timeout
        timeout = {"connect": connect, "read": None, "write": None, "pool": connect}
        sent = [*headers]
        if provider.proxy is not None and url.scheme == "http" and (login := proxy_login(provider.proxy)):
            sent.append((b"proxy-authorization", login.encode()))  # without a tunnel it is the proxy that reads this
        return httpx.Request("POST", url, headers=sent, content=body, extensions={"timeout": timeout})

    def _send(self, provider: Provider, request: httpx.Request) -> Coroutine[Any, Any, httpx.Response]:
        if self._client is not None:
            return self._client.send(request, stream=True, follow_redirects=False)
        transport = self._own.get(provider) if self._transport is None else self._transport
        return transport.handle_async_request(request)

    async def close(self) -> None:
        """Close our own connections, if any were made."""
        await self._own.close()


def _check_no_ways(providers: Sequence[Provider]) -> None:
    for index, provider in enumerate(providers):
        for name in _WAYS:
            if getattr(provider, name) is not None:
                raise ConfigError(
                    f"providers[{index}].{name}: has no effect with a transport or client of yours; set it up there"
                )


class ProviderReply(Protocol):
    """A provider's answer, whose body is read as it comes, undecoded. `aclose` it, read or not."""

    status: int
    headers: Headers
    ended: bool
    """Whether all of the body has been read; a reply may also say so only by an empty `read`."""

    async def read(self) -> bytes:
        """The next bytes of the body, none at its end. Raises UpstreamError where it breaks off."""
        ...

    async def aclose(self) -> None:
        """Let go of it, read or not."""
        ...


class HttpxReply:
    """An answer over httpx."""

    __slots__ = ("_chunks", "_missing", "_response", "ended", "headers", "status")

    def __init__(self, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._response = response
        self.status = response.status_code
        self.headers = Headers(response.headers.raw)
        self._chunks = aiter(response.stream)
        length = self.headers.get(b"content-length")
        self._missing = int(length) if length is not None and length.isdecimal() and len(length) < 20 else None
        self.ended = False

    async def read(self) -> bytes:
        """The next bytes. Raises UpstreamError where the body breaks off."""
        chunk = b""
        try:
            while not chunk:
                chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self.ended = True
            return b""
        except Exception as error:  # noqa: BLE001 - transports let more through than httpx.HTTPError
            raise read_error(error) from None
        if self._missing is not None:  # nothing can follow the last byte, whatever the provider does
            self._missing -= len(chunk)
            self.ended = self._missing <= 0
        return chunk

    async def aclose(self) -> None:
        """Let go of it, read or not."""
        await self._response.aclose()


def read_error(error: Exception) -> UpstreamError:
    """What a transport's error in the midst of a body means."""
    if isinstance(error, UpstreamError):
        return error
    if isinstance(error, httpx.TimeoutException):
        return UpstreamTimeout("The provider stopped sending.")
    return UpstreamError("The provider's reply broke off.", code="upstream_disconnected")


def connect_error(error: Exception) -> UpstreamError:
    """The AiohttpTransport raises ConnectTimeout for nearly everything; what happened is in the cause."""
    cause = error.__cause__ or error
    from_aiohttp = isinstance(cause, aiohttp.ClientError)
    if isinstance(cause, aiohttp.ConnectionTimeoutError) or (isinstance(error, _TOO_LATE_TO_SEND) and not from_aiohttp):
        return UpstreamTimeout("The provider could not be reached in time.", sent=False)
    if isinstance(cause, _NEVER_SENT) or type(error) in _NEVER_SENT_BY_ANY:
        return UpstreamUnreachable("The provider could not be reached.")
    if isinstance(cause, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        return UpstreamError("The provider closed the connection without an answer.", code="upstream_disconnected")
    if isinstance(error, httpx.TimeoutException):
        return UpstreamTimeout("The provider did not answer in time.")
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        return UpstreamError("The provider closed the connection without an answer.", code="upstream_disconnected")
    return UpstreamError("The provider's answer could not be read.", code="upstream_protocol_error")
