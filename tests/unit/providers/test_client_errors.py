"""What the errors of aiohttp and of httpx mean for a call."""

import ssl

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey

from arbstr_asgi.errors import UpstreamError
from arbstr_asgi.providers.client_errors import connect_error, read_error
from arbstr_asgi.providers.http1 import MalformedReply

KEY = ConnectionKey("h", 443, True, True, None, None, None)
UNREACHABLE = (502, "upstream_unreachable", "The provider could not be reached.", False)
LATE = (504, "upstream_timeout", "The provider could not be reached in time.", False)
CLOSED = (502, "upstream_disconnected", "The provider closed the connection without an answer.", True)
UNREADABLE = (502, "upstream_protocol_error", "The provider's answer could not be read.", True)


def caused(error: Exception, cause: Exception) -> Exception:
    """As `raise error from cause` makes it."""
    error.__cause__ = cause
    return error


def facts(error: UpstreamError) -> tuple[int, str | None, str, bool]:
    """What a client and the failover see of an error."""
    return error.status_code, error.code, error.message, error.sent


OF_AIOHTTP = [
    (aiohttp.ClientConnectorError(KEY, OSError(111, "refused")), OSError(111, "refused"), UNREACHABLE),
    (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "unknown")), OSError(-2, "unknown"), UNREACHABLE),
    (aiohttp.ClientConnectorCertificateError(KEY, ssl.CertificateError()), ssl.CertificateError(), UNREACHABLE),
    (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError()), ssl.SSLError(), UNREACHABLE),
    (aiohttp.ConnectionTimeoutError(), TimeoutError(), LATE),
    (aiohttp.ServerDisconnectedError(), None, CLOSED),
    (aiohttp.ClientOSError(104, "reset"), None, CLOSED),
    (MalformedReply("x"), None, UNREADABLE),
    (aiohttp.ClientConnectionError("Connector is closed."), None, UNREADABLE),
    (ValueError("x"), None, UNREADABLE),
]


@pytest.mark.parametrize(("error", "cause", "expected"), OF_AIOHTTP, ids=lambda value: type(value).__name__)
def test_errors_of_aiohttp(
    error: Exception, cause: Exception | None, expected: tuple[int, str | None, str, bool]
) -> None:
    """What happened at a connection says the same of the call, whether it comes as it is or by way of httpx."""
    assert facts(connect_error(error if cause is None else caused(error, cause))) == expected
    if expected is not UNREADABLE:
        assert facts(connect_error(caused(httpx.ConnectTimeout("x"), error))) == expected


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (httpx.ReadTimeout("x"), "upstream_timeout"),
        (httpx.ReadError("x"), "upstream_disconnected"),
        (aiohttp.ServerDisconnectedError(), "upstream_disconnected"),
        (MalformedReply("x"), "upstream_disconnected"),
        (ValueError("x"), "upstream_disconnected"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_within_a_body(error: Exception, code: str) -> None:
    """A body that breaks off has been sent for, and says whether it was by silence."""
    found = read_error(error)
    assert (found.code, found.sent) == (code, True)
