"""Every error this package raises, and the JSON a client sees for it.

ArbstrError                      what a client may be told; raise it in `identify` to refuse a caller
├── ConfigError                  the configuration is wrong; raised at start, names the path
├── LedgerError                  the ledger can't be opened, or read; raised at start
│   └── LedgerUnavailable        its database does not answer at this moment
├── RequestError                 the client's request can't be served as it is (4xx)
├── ServerError                  we can't serve at this moment (503)
└── UpstreamError                the provider did not answer, or stopped answering (502)
    ├── UpstreamUnreachable      no connection was made: the provider never saw the request
    ├── UpstreamTimeout          too late (504)
    ├── ProviderKeyError         the key to send could not be had
    └── ProviderAuthenticationError  it refused a key of ours, or its account
"""

import json
from collections.abc import Mapping
from typing import ClassVar

MAX_QUOTED = 100


class ArbstrError(Exception):
    """An error in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``.

    `status_code` is the HTTP status, `headers` are added to the reply. In `identify`, raise it with 401 or 403:

        raise ArbstrError(403, "no plan, no chat", code="no_plan")
    """

    default_type: ClassVar[str] = "arbstr_error"

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 - the name in OpenAI's error object
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.message = message
        self.type = type or self.default_type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def to_json(self) -> bytes:
        """The body of the error response."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def summary(self) -> str:
        """Type and code, for a row or a log line; not the message, which may quote the client."""
        return f"{self.type}: {self.code}" if self.code else self.type


class ConfigError(ArbstrError, ValueError):
    """The configuration is wrong; the message names the path, as in `providers[2].input_rate: …`."""

    default_type = "configuration_error"

    def __init__(self, message: str) -> None:
        super().__init__(500, message)


class LedgerError(ArbstrError):
    """The ledger can't be opened as configured; the message says what to do."""

    default_type = "ledger_error"

    def __init__(self, message: str) -> None:
        super().__init__(500, message)


class LedgerUnavailable(LedgerError):
    """The ledger's database does not answer; a retry may succeed."""


class RequestError(ArbstrError):
    """The request is invalid or not allowed (4xx)."""

    default_type = "invalid_request_error"


class ServerError(ArbstrError):
    """The server can not answer now (503); a retry may succeed."""

    default_type = "server_error"

    def __init__(self, message: str, *, status_code: int = 503, code: str, retry_after: int | None = None) -> None:
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        super().__init__(status_code, message, code=code, headers=headers)


class UpstreamError(ArbstrError):
    """The provider did not respond, or broke off its response.

    `sent` is False only if certainly nothing of the request has reached the provider; otherwise it may have worked on
    it and bill it.
    """

    default_type = "upstream_error"

    def __init__(
        self, message: str, *, status_code: int = 502, code: str = "upstream_error", sent: bool = True
    ) -> None:
        super().__init__(status_code, message, code=code)
        self.sent = sent


class UpstreamUnreachable(UpstreamError):
    """No connection could be made, so the provider has not received the request."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="upstream_unreachable", sent=False)


class UpstreamTimeout(UpstreamError):
    """The provider exceeded a timeout."""

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message, status_code=504, code="upstream_timeout", sent=sent)


class ProviderKeyError(UpstreamError):
    """The key of a provider is not available: its file can not be read, or its function raised."""

    def __init__(self) -> None:
        super().__init__("The server has no key for the provider.", code="provider_key_unavailable", sent=False)


class ProviderAuthenticationError(UpstreamError):
    """The provider answered 401, 402 or 403 to our key; its own message may quote the key, and is not passed on."""

    default_type = "provider_authentication_error"

    def __init__(self, status: int) -> None:
        super().__init__("The provider refused the server's account or credentials.", code=f"provider_{status}")
        self.headers["x-should-retry"] = "false"


def quotable(text: str) -> str:
    """A client's text, safe to repeat in a message: printable, at most 100 characters."""
    cut = text[:MAX_QUOTED]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
    return cut[:MAX_QUOTED]
