"""Maps the errors of aiohttp and httpx to UpstreamError."""

import aiohttp
import httpx

from arbstr_asgi.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable

# Nothing of the request has reached the provider; after other errors it may have been processed and billed.
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError)
_NEVER_SENT_BY_ANY = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol)
_TOO_LATE_TO_SEND = (httpx.ConnectTimeout, httpx.PoolTimeout)


def read_error(error: Exception) -> UpstreamError:
    """The error for a body that is truncated or timed out."""
    if isinstance(error, httpx.TimeoutException):
        return UpstreamTimeout("The provider stopped sending.")
    return UpstreamError("The provider's reply broke off.", code="upstream_disconnected")


def connect_error(error: Exception) -> UpstreamError:
    """The error for a request without a response head.

    httpx-aiohttp raises ConnectTimeout for nearly all errors; the aiohttp error is its cause.
    """
    cause = error if isinstance(error, aiohttp.ClientError) else error.__cause__ or error
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
