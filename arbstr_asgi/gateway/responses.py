"""What the gateway itself says to a client, as ASGI messages."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

from arbstr_asgi.errors import ArbstrError

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

_NONE: Mapping[str, int] = MappingProxyType({})


def our_headers(
    correlation_id: str,
    provider: str | None = None,
    *,
    streaming: bool = False,
    failed: Mapping[str, int] = _NONE,
) -> RawHeaders:
    """The headers that say which call this was; `failed` attempts before the one that is answered, by provider."""
    headers = [(b"x-arbstr-request-id", correlation_id.encode())]
    if provider is not None:
        headers.append((b"x-arbstr-provider", provider.encode()))
    if streaming:
        headers.append((b"x-arbstr-streaming", b"true"))
    if failed:
        headers.append((b"x-arbstr-retries", ", ".join(f"{n}/{name}" for name, n in failed.items()).encode()))
    return headers


async def send_error(send: Send, error: ArbstrError, headers: RawHeaders) -> None:
    """Answer with `error` in OpenAI's shape."""
    body = error.to_json()
    length = (b"content-length", str(len(body)).encode())
    # What no header can hold must not cost the client its answer.
    theirs = [(n.lower().encode("latin-1"), v.encode("latin-1", "replace")) for n, v in error.headers.items()]
    start = [(b"content-type", b"application/json"), length, *headers, *theirs]
    await send({"type": "http.response.start", "status": error.status_code, "headers": start})
    await send({"type": "http.response.body", "body": body})


def error_event(error: ArbstrError) -> bytes:
    """The event that ends a stream which broke off; OpenAI's SDKs raise APIError for it."""
    return b"data: " + error.to_json() + b"\n\n"
