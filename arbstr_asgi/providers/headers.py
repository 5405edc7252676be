"""Which headers pass between a client and a provider: allow-lists both ways.

A provider must not steer the host or what stands in front of it, and nothing that says who the host's user is goes
to a provider."""

import re
from collections.abc import Sequence

from arbstr_asgi.config.provider import Provider

RawHeaders = Sequence[tuple[bytes, bytes]]

TO_PROVIDER = frozenset({b"content-type", b"accept", b"user-agent", b"traceparent", b"tracestate"})
WITH_AUTHORIZATION = frozenset({b"authorization", b"openai-organization", b"openai-project"})
TO_CLIENT = frozenset(
    b"content-type content-encoding content-length cache-control retry-after retry-after-ms x-should-retry "
    b"x-request-id openai-processing-ms openai-version x-generation-id".split()
)
# They describe bytes that we are about to change.
ABOUT_THE_BYTES = frozenset({b"content-length", b"etag", b"digest", b"content-digest", b"repr-digest", b"content-md5"})

# RFC 9110 section 5.5: nobody sends anything else, so that it would cost the client its reply, or us the request.
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class Headers:
    """Headers as they came (`raw`), and by their names in lower case the first of each."""

    __slots__ = ("_first", "raw")

    def __init__(self, raw: RawHeaders) -> None:
        self.raw = raw
        self._first = {name.lower(): value for name, value in reversed(raw)}

    def __contains__(self, name: bytes) -> bool:
        return name in self._first

    def get(self, name: bytes) -> str | None:
        """The value of the first header called `name` (lower case)."""
        value = self._first.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case; empty when there is none."""
        return (self.get(b"content-type") or "").partition(";")[0].strip().lower()

    @property
    def is_plain(self) -> bool:
        """Whether the body has no content-encoding."""
        return (self.get(b"content-encoding") or "identity").strip().lower() == "identity"


def is_sendable(value: bytes) -> bool:
    """Whether a header may have this value."""
    return _VALUE.fullmatch(value) is not None


class HeaderPolicy:
    """What passes between clients and one provider."""

    def __init__(self, provider: Provider) -> None:
        there = TO_PROVIDER.union(name.encode() for name in provider.forward_headers)
        self._forwards_authorization = provider.forward_authorization
        self._there = there | WITH_AUTHORIZATION if provider.forward_authorization else there
        self._ours = [(name.lower().encode(), value.encode()) for name, value in provider.headers.items()]
        self._ours.append((b"accept-encoding", b"identity"))
        self._taken = frozenset(name for name, _ in self._ours) | {b"idempotency-key"}
        self._carrier = provider.auth_header.encode()
        self._back = TO_CLIENT.union(name.encode() for name in provider.return_headers)
        self._back_if_changed = self._back - ABOUT_THE_BYTES

    def request_headers(self, client: Headers, correlation_id: str, key: str | None) -> list[tuple[bytes, bytes]]:
        """The headers of the provider's request, which `key` authorizes unless something else does."""
        carrier, taken = self._carrier, self._taken
        ours = [(b"idempotency-key", correlation_id.encode()), *self._ours]
        theirs_counts = self._forwards_authorization and client.get(b"authorization")
        if key and carrier not in taken and not theirs_counts:
            taken |= {carrier}
            ours.append((carrier, (f"Bearer {key}" if carrier == b"authorization" else key).encode()))
        there = self._there
        for raw_name, value in client.raw:
            name = raw_name.lower()
            if (name in there or name.startswith(b"x-stainless-")) and name not in taken and is_sendable(value):
                ours.append((name, value))
        return ours

    def response_headers(self, upstream: Headers, *, changed: bool) -> list[tuple[bytes, bytes]]:
        """The provider's headers that the client gets; `changed`: the body's bytes will not be the provider's."""
        back = self._back_if_changed if changed else self._back
        passing: list[tuple[bytes, bytes]] = []
        for raw_name, value in upstream.raw:
            name = raw_name.lower()
            if (name in back or name.startswith(b"x-ratelimit-")) and is_sendable(value):
                passing.append((name, value.strip()))
        return passing
