"""Which headers pass between a client and a provider: allow-lists both ways.

A provider must not steer the host or what stands in front of it, and nothing that says who the host's user is goes
to a provider.
"""

import re
from collections.abc import Iterable, Sequence

from arbstr_asgi.config.provider import Provider

Headers = Sequence[tuple[bytes, bytes]]

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


def first(headers: Headers, name: bytes) -> str | None:
    """The value of the first header called `name` (lower case)."""
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None


def media_type(headers: Headers) -> str:
    """The content type without its parameters, in lower case; empty when there is none."""
    return (first(headers, b"content-type") or "").partition(";")[0].strip().lower()


def is_plain(headers: Headers) -> bool:
    """Whether the body has no content-encoding."""
    return (first(headers, b"content-encoding") or "identity").strip().lower() == "identity"


def is_sendable(value: bytes) -> bool:
    """Whether a header may have this value."""
    return _VALUE.fullmatch(value) is not None


def to_provider(client: Headers, provider: Provider, correlation_id: str, key: str | None) -> list[tuple[bytes, bytes]]:
    """The headers of the provider's request, which `key` authorizes unless something else does."""
    passing = TO_PROVIDER.union(name.encode() for name in provider.forward_headers)
    if provider.forward_authorization:
        passing |= WITH_AUTHORIZATION
    ours = [(name.lower().encode(), value.encode()) for name, value in provider.headers.items()]
    ours += [(b"idempotency-key", correlation_id.encode()), (b"accept-encoding", b"identity")]
    carrier = provider.auth_header.encode()
    set_by_hand = any(name == carrier for name, _ in ours)
    if key and not set_by_hand and not (provider.forward_authorization and first(client, b"authorization")):
        ours.append((carrier, (f"Bearer {key}" if carrier == b"authorization" else key).encode()))
    taken = {name for name, _ in ours}
    theirs = [
        (name, value)
        for name, value in ((name.lower(), value) for name, value in client)
        if (name in passing or name.startswith(b"x-stainless-")) and name not in taken and is_sendable(value)
    ]
    return theirs + ours


def to_client(upstream: Headers, provider: Provider, *, changed: bool) -> list[tuple[bytes, bytes]]:
    """The provider's headers that the client gets; `changed` says that the body's bytes will not be the provider's."""
    passing = TO_CLIENT.union(name.encode() for name in provider.return_headers)
    if changed:
        passing -= ABOUT_THE_BYTES
    return [(name, value.strip()) for name, value in _lower(upstream) if _passes(name, value, passing)]


def _passes(name: bytes, value: bytes, passing: frozenset[bytes]) -> bool:
    return (name in passing or name.startswith(b"x-ratelimit-")) and is_sendable(value)


def _lower(headers: Headers) -> Iterable[tuple[bytes, bytes]]:
    return ((name.lower(), value) for name, value in headers)
